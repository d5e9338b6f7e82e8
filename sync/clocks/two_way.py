"""Offset of a remote clock from two-way probes: two-sided hull, interval intersection, hard bound. (In work.)"""
