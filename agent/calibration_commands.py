"""`sensorium calibration show|convert|check`."""
