"""Readers of recordings that others wrote, as streams of frames."""

from sensorium.sync.sources.opening import identify, open_source
from sensorium.sync.sources.source import Problem, Source

__all__ = ["Problem", "Source", "identify", "open_source"]
