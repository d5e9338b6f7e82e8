"""Readers of recordings that others wrote, as streams of frames."""
