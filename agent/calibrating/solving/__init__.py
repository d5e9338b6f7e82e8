"""Solving a rig: what each solver is given, what it gives back, and where its data comes from."""
