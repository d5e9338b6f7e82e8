"""What the sensors themselves saw of the same instant."""
