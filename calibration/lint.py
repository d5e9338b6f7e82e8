"""Common human faults of a calibration: inverted, swapped, in millimetres, of another resolution, stale."""
