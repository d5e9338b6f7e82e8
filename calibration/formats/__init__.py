"""Calibration files of other tools: one module per format, read into and written from a rig calibration."""
