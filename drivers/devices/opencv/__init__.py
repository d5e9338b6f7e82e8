"""Cameras through OpenCV."""
