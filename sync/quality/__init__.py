"""Whether a recording is good enough, judged from what was measured while it was made."""
