"""OpenCV FileStorage (yml, xml; read and write) and the sensor.yaml of EuRoC (read)."""
