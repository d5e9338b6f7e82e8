"""Sensorium: multisensor capture whose episodes can prove themselves."""

__version__ = "0.1.0"
