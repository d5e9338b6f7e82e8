"""Runs the calibration checks a recording allows: one module for each kind of pair."""
