"""What payloads look like: one module per kind, one row of the table per encoding."""
