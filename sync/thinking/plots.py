"""Writes ``plots.mcap``: readings of the numeric streams, thinned, in a message that viewers plot as it is.

The exact samples lie packed in ``data.mcap``, in schemas that no viewer draws. Here each column's physical value is
an entry of a ``sensor_msgs/msg/JointState``: the one message of names and numbers that Foxglove (``.position[0]``)
and Rerun (``position``, a line per name) both plot without a set-up. Nothing is filtered, only left out; every
reading lies at its capture time. It is made once the recording is closed, so that the recorder pays nothing.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.drivers.payloads.decoder import Decoder
from sensorium.sync.episode.files import PLOTS_FILE
from sensorium.sync.episode.mcap_file import McapFile
from sensorium.sync.episode.open_chunk import OpenChunk
from sensorium.sync.episode.origin import END_METADATA, EPISODE_METADATA, pack_origin
from sensorium.sync.episode.reader import Episode
from sensorium.sync.episode.recorded import RecordedFrame, sample_times_ns
from sensorium.timebase import SECOND_NS

PLOT_SUFFIX = "/plot"
PLOT_HZ = 100
"""Readings per second and stream, at most; a screen shows no more."""

SCHEMA = "sensor_msgs/msg/JointState"
_CHUNK_BYTES = 256 << 10
_SCRATCH = ".plots"
_SEPARATOR = "=" * 80
DEFINITION = f"""std_msgs/Header header
string[] name
float64[] position
float64[] velocity
float64[] effort
{_SEPARATOR}
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
{_SEPARATOR}
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
""".encode()


def is_plotted(info: StreamInfo) -> bool:
    """Return whether a stream's readings are numbers that may lie in a file that anybody may open."""
    return info.plain_encoding == Encoding.COLUMNS and not info.is_personal and not info.reference_of


def write_plots(folder: Path) -> None:
    """Write ``plots.mcap`` into the folder of a closed episode; none where no stream holds numbers.

    A file that a crash left is replaced.

    Raises:
        EpisodeError: If the files cannot be read, or the disk does not take the new one.
        PayloadError: If a frame cannot be decoded.
    """
    scratch = folder / _SCRATCH
    scratch.unlink(missing_ok=True)
    with Episode(folder) as episode:
        plots = {name: Plot(info) for name, info in episode.streams.items() if is_plotted(info)}
        if not plots:
            return
        file = McapFile(scratch)
        try:
            _write(episode, plots, file)
        except BaseException:
            file.discard()
            raise
    scratch.replace(folder / PLOTS_FILE)


def _write(episode: Episode, plots: "dict[str, Plot]", file: McapFile) -> None:
    file.add_metadata(EPISODE_METADATA, pack_origin(episode.episode_id, episode.timeline))
    schema_id = file.add_schema(SCHEMA, "ros2msg", DEFINITION)
    channels = {name: file.add_channel(f"/{name}{PLOT_SUFFIX}", "cdr", schema_id, {}) for name in plots}
    compressor = zstandard.ZstdCompressor(level=1)
    chunk = OpenChunk(file, True, None)
    offset_ns = episode.timeline.utc_minus_host_ns
    for recorded in episode.frames(list(plots)):
        name = recorded.frame.stream
        for capture_ns, values in plots[name].take(recorded):
            utc_ns = max(capture_ns + offset_ns, 0)
            data = plots[name].message(utc_ns, values)
            chunk.add(channels[name], 0, utc_ns, utc_ns, (data,), len(data))
        if chunk.size >= _CHUNK_BYTES:
            file.add_chunk(chunk.pack(compressor))
            chunk = OpenChunk(file, True, None)
    if chunk.size:
        file.add_chunk(chunk.pack(compressor))
    file.add_metadata(END_METADATA, {"episode_id": episode.episode_id, "truncated": "false"})
    file.finish()


class Plot:
    """One stream: which of its readings are kept, and how each is written."""

    def __init__(self, info: StreamInfo) -> None:
        self._decoder = Decoder(info)
        self._rate_hz = info.rate_hz
        self._is_slow = 0 < info.rate_hz <= 1.05 * PLOT_HZ
        self._last_slot = -1
        columns = len(info.columns)
        frame_id = info.frame_id.encode() + b"\0"
        body = struct.pack("<I", len(frame_id)) + frame_id
        body = _padded(body, 4, after=8) + struct.pack("<I", columns)
        for column in info.columns:
            text = column.name.encode() + b"\0"
            body = _padded(body, 4, after=8) + struct.pack("<I", len(text)) + text
        body = _padded(body, 4, after=8) + struct.pack("<I", columns)
        self._body = _padded(body, 8, after=8)
        self._values = struct.Struct(f"<{columns}d")

    def take(self, recorded: RecordedFrame) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Yield (capture time, values) of the readings of a frame that are kept."""
        frame = recorded.frame
        values = self._decoder.samples(frame.payload, frame.count)
        times_ns = sample_times_ns(recorded.stamped.capture_ns, frame.count, self._rate_hz)
        if values is None or not len(times_ns):
            return
        keep = np.arange(len(times_ns))
        if not self._is_slow:
            slots = times_ns // (SECOND_NS // PLOT_HZ)
            keep = np.flatnonzero(np.diff(slots, prepend=self._last_slot))
            self._last_slot = int(slots[-1])
        yield from zip(times_ns[keep].tolist(), np.asarray(values, np.float64)[keep], strict=True)

    def message(self, utc_ns: int, values: NDArray[np.float64]) -> bytes:
        """Return the message in CDR, little-endian: its header, the names, the values, two empty lists."""
        seconds, nanos = divmod(utc_ns, SECOND_NS)
        head = b"\x00\x01\x00\x00" + struct.pack("<iI", seconds, nanos)
        return head + self._body + self._values.pack(*values) + bytes(8)


def _padded(data: bytes, size: int, after: int) -> bytes:
    """Return data that ends at a multiple of ``size``, ``after`` bytes of the message before it."""
    return data + bytes(-(len(data) + after) % size)
