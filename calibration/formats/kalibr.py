"""Kalibr: ``camchain.yaml``, ``camchain-imucam.yaml`` and ``imu.yaml`` (read and write)."""
