"""Frames matched to hardware trigger pulses, and PPS edges (being written: helper for issue 3, item 5).

Matching by counter; lost pulses and lost frames are told apart; exposure midpoint and row time are applied.
"""
