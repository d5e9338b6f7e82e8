"""Calibration work on recordings and live rigs: checking, solving, watching."""
