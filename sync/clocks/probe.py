"""The UDP side channel of two-way probes: authenticated, kernel receive stamps, bursts of 8. (In work.)"""
