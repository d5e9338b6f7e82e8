"""PTP hardware clocks by bracketed reads, and chrony's own tracking as a fallback. (In work.)"""
