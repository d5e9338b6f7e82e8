"""Maps from device ticks to the episode clock, each with its uncertainty."""
