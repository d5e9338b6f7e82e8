"""Rows at any rate from any episode (being written: helper for issue 3, item 8).

Nearest with tolerance for events and images, linear for sampled signals, SLERP for orientation; each value with its
uncertainty, the interpolation gap, or the reason for its absence. ``Episode.aligned`` is the way in.
"""
