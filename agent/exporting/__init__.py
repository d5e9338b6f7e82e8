"""Episodes in other formats; one small interface, one module for each format."""
