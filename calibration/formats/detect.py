"""Tell which tool wrote a calibration file and import it."""
