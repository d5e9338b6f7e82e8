"""Recordings of librealsense: all their stamps count from the start, and the true time stands as text among them.

Seen in a ``.bag`` of its tests: topics ``/device_N/sensor_M/.../image/metadata`` of diagnostic_msgs/KeyValue, one of
whose keys is ``system_time`` with milliseconds since 1970 as a decimal number. Its newer ``.db3`` files hold the same
topics without a metadata.yaml.
"""

import re
from collections.abc import Iterator
from datetime import datetime, timezone

from sensorium.sync.sources.source import Problem
from sensorium.sync.sources.stamp_units import EARLIEST_UTC_NS, LATEST_UTC_NS
from sensorium.timebase import SECOND_NS

_TOPIC = re.compile(r"/device_\d+/sensor_\d+/\S+/metadata")
_SYSTEM_TIME = re.compile(rb"system_time\W{1,12}?(\d{12,13})(?:\.(\d{1,6})\d*)?", re.DOTALL)
_MS_NS = SECOND_NS // 1000


class SystemTime:
    """Looks for the first statement of the true time.

    Attributes:
        offset_ns: UTC minus the recording's stamps; 0 while nothing was found.
    """

    def __init__(self) -> None:
        self.offset_ns = 0
        self._is_realsense = False

    def is_told_on(self, topic: str) -> bool:
        """Return whether messages of a topic may state the time."""
        return _TOPIC.fullmatch(topic) is not None

    def take(self, payload: bytes, log_ns: int) -> None:
        """Look at a message of such a topic; the first that states a time counts."""
        self._is_realsense |= log_ns < EARLIEST_UTC_NS
        found = _SYSTEM_TIME.search(payload[:256]) if self._is_realsense and not self.offset_ns else None
        if found is None:
            return
        fraction = (found[2] or b"").ljust(6, b"0")
        utc_ns = int(found[1]) * _MS_NS + int(fraction)
        if EARLIEST_UTC_NS <= utc_ns <= LATEST_UTC_NS:
            self.offset_ns = utc_ns - log_ns

    def problems(self, start_ns: int) -> Iterator[Problem]:
        """Yield what a user must know of the stamps of a recording of librealsense."""
        if not self._is_realsense:
            return
        text = "recorded by librealsense, whose stamps count from the start of the recording"
        if self.offset_ns:
            begin_s = (start_ns + self.offset_ns) // SECOND_NS
            begin = datetime.fromtimestamp(begin_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
            text += f"; that it began at {begin} UTC is taken from the text system_time of its first frame"
        else:
            text += "; when that was, no text system_time tells"
        yield Problem("relative_stamps", "", 1, text)
