"""The host's own clocks: RAW to MONOTONIC, REALTIME and TAI, with error, steps and slews. (In work.)"""
