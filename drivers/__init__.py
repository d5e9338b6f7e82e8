"""What a device is, how its frames travel, and one file per device family."""
