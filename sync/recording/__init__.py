"""The recording session: from the bus to a signed episode."""
