"""KITTI: calibration of the object, odometry and raw sets (read)."""
