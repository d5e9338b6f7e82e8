"""Foxglove ``CameraCalibration`` and ``FrameTransform`` messages in an MCAP file (read and write)."""
