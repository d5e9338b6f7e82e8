"""The checker process: calibration checks on aligned sets while recording, within a share of the processor."""
