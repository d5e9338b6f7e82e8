"""An episode as one MCAP file for viewers: what can be seen, heard or plotted, and nothing else in the list.

The episode's own files hold each personal stream apart, stamps beside every stream, and what codecs packed. Here
is one file without those: images, video, sound, clouds and messages of others, restored where a codec had packed
them, numbers as ``NAME/plot`` (see :mod:`sensorium.sync.thinking.plots`), transforms and camera models. ``log_time``
is the capture time, of all topics, so that they line up.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

import zstandard

from sensorium.agent.exporting.exporter import Exporter, ExportJob
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.drivers.payloads.decoder import Decoder
from sensorium.drivers.payloads.table import plain_of
from sensorium.errors import CalibrationError
from sensorium.sync.episode.files import CALIBRATION_FILE
from sensorium.sync.episode.layouts import layout_for, protobuf_schema
from sensorium.sync.episode.mcap_file import McapFile
from sensorium.sync.episode.open_chunk import OpenChunk
from sensorium.sync.episode.recorded import RecordedFrame
from sensorium.sync.episode.scene import scene_messages
from sensorium.sync.thinking.plots import DEFINITION, PLOT_SUFFIX, SCHEMA, Plot

FILE = "episode.mcap"
_CHUNK_BYTES = 1 << 20
_OURS = "sensorium."
"""Schemas that no viewer draws."""


class McapExporter(Exporter):
    """One file; a LiDAR that is kept as its own packets or range image is shown by its thinned cloud."""

    def holds(self, info: StreamInfo) -> bool:
        plain = plain_of(info)
        if plain.encoding == Encoding.COLUMNS:
            return True
        return not layout_for(plain).channel.schema.name.startswith(_OURS)

    def write(self, job: ExportJob) -> Mapping[str, int]:
        file = _ViewerFile(McapFile(job.folder / FILE))
        try:
            return _write(job, file)
        finally:
            file.close()


def _write(job: ExportJob, file: "_ViewerFile") -> Mapping[str, int]:
    written = {info.name: 0 for info in job.streams}
    offset_ns = job.episode.timeline.utc_minus_host_ns
    file.add_scene(job)
    topics = {info.name: _topic(info, file, offset_ns) for info in job.streams}
    for recorded in job.episode.frames(list(written)):
        name = recorded.frame.stream
        for utc_ns, data in topics[name].messages(recorded):
            file.add(topics[name].channel_id, utc_ns, data)
        written[name] += recorded.frame.count
        job.report(recorded.frame.count)
    return written


class _ViewerFile:
    """The file, and the chunk of it that is being filled."""

    def __init__(self, file: McapFile) -> None:
        self._file = file
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._chunk = OpenChunk(file, True, None)

    def channel(self, topic: str, message_encoding: str, name: str, encoding: str, definition: bytes) -> int:
        schema_id = self._file.add_schema(name, encoding, definition)
        return self._file.add_channel(topic, message_encoding, schema_id, {})

    def add(self, channel_id: int, utc_ns: int, data: bytes) -> None:
        self._chunk.add(channel_id, 0, utc_ns, utc_ns, (data,), len(data))
        if self._chunk.size >= _CHUNK_BYTES:
            self._flush()

    def add_scene(self, job: ExportJob) -> None:
        """Add transforms and camera models as of the beginning; a calibration that cannot be read shows nothing."""
        path = job.episode.path / CALIBRATION_FILE
        if not path.exists():
            return
        utc_ns = job.manifest.span_ns[0] + job.manifest.timeline.utc_minus_host_ns
        with suppress(CalibrationError):
            for topic, message in scene_messages(RigCalibration.load(path), utc_ns):
                schema = protobuf_schema(type(message))
                channel_id = self.channel(topic, "protobuf", schema.name, schema.encoding, schema.data)
                self.add(channel_id, utc_ns, message.SerializeToString())

    def _flush(self) -> None:
        if self._chunk.size:
            self._file.add_chunk(self._chunk.pack(self._compressor))
            self._chunk = OpenChunk(self._file, True, None)

    def close(self) -> None:
        self._flush()
        self._file.finish()


class _Seen:
    """A stream whose messages viewers know."""

    def __init__(self, info: StreamInfo, file: _ViewerFile, offset_ns: int) -> None:
        self._decoder = Decoder(info)
        self._layout = layout_for(self._decoder.info)
        self._offset_ns = offset_ns
        schema = self._layout.channel.schema
        message_encoding = schema.message_encoding
        self.channel_id = file.channel(
            f"/{info.name}", message_encoding, schema.name, schema.encoding, schema.data
        )

    def messages(self, recorded: RecordedFrame) -> Iterator[tuple[int, bytes]]:
        """Yield (UTC ns, message): one."""
        frame = recorded.frame
        plain = replace(frame, payload=self._decoder.plain(frame.payload, frame.count))
        utc_ns = max(int(recorded.stamped.capture_ns[-1]) + self._offset_ns, 0)
        yield utc_ns, b"".join(self._layout.wrap_parts(plain, utc_ns))


class _Plotted:
    """A stream of numbers."""

    def __init__(self, info: StreamInfo, file: _ViewerFile, offset_ns: int) -> None:
        self._plot = Plot(info)
        self._offset_ns = offset_ns
        self.channel_id = file.channel(f"/{info.name}{PLOT_SUFFIX}", "cdr", SCHEMA, "ros2msg", DEFINITION)

    def messages(self, recorded: RecordedFrame) -> Iterator[tuple[int, bytes]]:
        """Yield (UTC ns, message) of each reading that is kept."""
        for capture_ns, values in self._plot.take(recorded):
            utc_ns = max(capture_ns + self._offset_ns, 0)
            yield utc_ns, self._plot.message(utc_ns, values)


def _topic(info: StreamInfo, file: _ViewerFile, offset_ns: int) -> _Seen | _Plotted:
    kind = _Plotted if info.plain_encoding == Encoding.COLUMNS else _Seen
    return kind(info, file, offset_ns)
