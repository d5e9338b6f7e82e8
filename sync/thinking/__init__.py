"""What thinks beside the recorder: clocks, alignment, aligned sets, and the seal. It may lag, and it may die."""
