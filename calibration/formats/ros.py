"""ROS: ``camera_info`` YAML (also the flat ``D: K:`` form) and fixed joints of a URDF (read and write)."""
