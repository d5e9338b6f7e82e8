"""Ouster LiDARs: packets, revolutions, the driver."""
