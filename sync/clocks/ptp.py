"""What ptp4l says, read from its management socket, and what it is worth: lock rule, verdicts. (In work.)"""
