"""Devices that speak the real protocols of real ones."""
