"""The record plane between drivers and synchronizer, and the lossy live plane."""
