"""Geometry, rig documents and the checks that tell whether a rig is still calibrated."""
