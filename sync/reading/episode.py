"""One episode, open for reading: ``sensorium.open``."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from sensorium.calibration.rig_document import RigCalibration
from sensorium.errors import CalibrationError, ConsentError, EpisodeError, UsageError
from sensorium.sync.episode.aligned import AlignedOptions
from sensorium.sync.episode.entries import EpisodeEvent
from sensorium.sync.episode.files import CALIBRATION_FILE, DATA_FILE, SYNC_FILE, stream_file
from sensorium.sync.episode.manifest import ClockSummary, Manifest, QualityRecord, hash_file
from sensorium.sync.episode.reader import Episode as EpisodeFiles
from sensorium.sync.reading.frames import Frame, Window, frames_in
from sensorium.sync.reading.locate import LocatedEpisode
from sensorium.sync.reading.samples import Audio, Columns, audio_in, columns_in
from sensorium.sync.reading.streams import Stream
from sensorium.sync.reading.transforms import Transforms, transforms_of

if TYPE_CHECKING:  # OpenCV, which decodes them, takes a while to load and is not needed for numbers
    from sensorium.sync.reading.rows import Row
    from sensorium.sync.reading.scenes import Image, Points


class Episode:
    """A recording of several sensors on one clock.

    All times are UTC nanoseconds (int). Whatever is read is read when it is iterated over, and only the chunks that
    hold the span that was asked for; one stream that nobody asks for is not read at all. Several files are one.

    Attributes:
        path: Folder that it lies in.
        manifest: Everything it says about itself, signed; fields as in ``sensorium episodes show --json``.
        streams: What is in it by name, in the order of the manifest, withheld ones included: those say why.
    """

    def __init__(
        self,
        located: LocatedEpisode,
        streams: Mapping[str, Stream],
        ask: Callable[[Collection[str]], Mapping[str, str]],
    ) -> None:
        """Use :func:`sensorium.open`.

        Args:
            ask: Returns why each of these streams may not be read now, as far as one may not.

        Raises:
            EpisodeError: If the episode is not sealed.
        """
        if located.manifest is None:
            raise EpisodeError(
                f"{located.folder} is not sealed; let the agent finish, or run: sensorium episodes recover"
            )
        self._located = located
        self._ask = ask
        self._files: EpisodeFiles | None = None
        self._is_closed = False
        self.path: Path = located.folder
        self.manifest: Manifest = located.manifest
        self.streams: Mapping[str, Stream] = MappingProxyType(dict(streams))

    @property
    def id(self) -> str:
        return self.manifest.episode_id

    @property
    def start_ns(self) -> int:
        """The first capture of any stream, UTC ns."""
        return self.manifest.span_ns[0] + self.manifest.timeline.utc_minus_host_ns

    @property
    def end_ns(self) -> int:
        """The last capture of any stream, UTC ns."""
        return self.manifest.span_ns[1] + self.manifest.timeline.utc_minus_host_ns

    @property
    def quality(self) -> QualityRecord:
        """The verdict over the recording, and its reasons."""
        return self.manifest.quality

    @property
    def clocks(self) -> Mapping[str, ClockSummary]:
        """How well the clock of each stream is known."""
        return {record.info.name: record.clock for record in self.manifest.streams}

    @property
    def consent(self) -> Mapping[str, str]:
        """Why each stream that is withheld is; of a stream that may be read, ""."""
        return {name: stream.withheld for name, stream in self.streams.items()}

    @cached_property
    def calibration(self) -> RigCalibration | None:
        """The calibration that was in force; None if it was recorded without.

        Raises:
            EpisodeError: If its file is missing, or not the one that was sealed.
            CalibrationError: If it cannot be understood.
        """
        sealed = next((file for file in self.manifest.files if file.name == CALIBRATION_FILE), None)
        if sealed is None:
            return None
        path = self._located.file(CALIBRATION_FILE)
        if hash_file(path).sha256 != sealed.sha256:
            raise EpisodeError(
                f"{path} is not the calibration that was sealed; run: sensorium episodes verify"
            )
        return RigCalibration.load(path)

    def transforms(self, at_ns: int | None = None, *, base: str | None = None) -> Transforms:
        """Return where the sensors are: T_base_frame, 4x4, by the name of the frame.

        An episode ends when its calibration changes, so one answer holds for all of it; ``Stream.frame_id`` names
        the frame of a stream.

        Args:
            at_ns: An instant of the episode.
            base: The frame that they lead from; None = the calibration's root.

        Raises:
            CalibrationError: If it has no calibration, or that no such frame.
            EpisodeError: If ``at_ns`` lies outside the episode.
        """
        if at_ns is not None and not self.start_ns <= at_ns <= self.end_ns:
            raise EpisodeError(
                f"episode {self.id} was recorded from {self.start_ns} to {self.end_ns} (UTC ns); {at_ns} lies outside"
            )
        if self.calibration is None:
            raise CalibrationError(f"episode {self.id} was recorded without a calibration")
        return transforms_of(self.calibration, base)

    def frames(
        self,
        stream: str | Collection[str] | None = None,
        *,
        start_ns: int | None = None,
        end_ns: int | None = None,
    ) -> Iterator[Frame]:
        """Return an iterator over frames as they were recorded, in order of arrival.

        Args:
            stream: One, or several; None = all that may be read.
            start_ns, end_ns: Frames of which something was captured from ``start_ns`` on and before ``end_ns``.

        Raises:
            UsageError: If there is no such stream.
            ConsentError: If it is withheld.
            EpisodeError: If a file is missing or damaged.
        """
        names = self._named(stream)
        files = self._open(names)
        return self._frames(files, names, _window(start_ns, end_ns))

    def columns(self, stream: str, *, start_ns: int | None = None, end_ns: int | None = None) -> Columns:
        """Return the samples of a numeric stream in physical units, by column; see :class:`Columns`.

        Raises:
            UsageError, ConsentError, EpisodeError: As :meth:`frames`; also if it holds something else.
            PayloadError: If a payload is damaged.
        """
        return columns_in(self._open([stream], "columns"), stream, _window(start_ns, end_ns))

    def audio(self, stream: str, *, start_ns: int | None = None, end_ns: int | None = None) -> Audio:
        """Return the sound of a microphone: (n, channels) float32, full scale = 1, with each sample's time.

        Raises:
            UsageError, ConsentError, EpisodeError, PayloadError: As :meth:`columns`.
        """
        return audio_in(self._open([stream], "audio"), stream, _window(start_ns, end_ns))

    def images(
        self, stream: str, *, start_ns: int | None = None, end_ns: int | None = None
    ) -> Iterator["Image"]:
        """Return an iterator over the images of a camera or depth camera; ``image.pixels`` is RGB or grey.

        Of a video decoding begins at the key frame before ``start_ns``.

        Raises:
            UsageError, ConsentError, EpisodeError: As :meth:`columns`. A damaged image says so at ``pixels``.
        """
        from sensorium.sync.reading.scenes import images_in

        return images_in(self._open([stream], "images"), stream, _window(start_ns, end_ns))

    def points(
        self, stream: str, *, start_ns: int | None = None, end_ns: int | None = None
    ) -> Iterator["Points"]:
        """Return an iterator over the clouds of a LiDAR: (N, 3) metres in the sensor's frame, a time for each.

        Raises:
            UsageError, ConsentError, EpisodeError, PayloadError: As :meth:`columns`.
        """
        from sensorium.sync.reading.scenes import points_in

        return points_in(self._open([stream], "points"), stream, _window(start_ns, end_ns))

    def aligned(
        self,
        *,
        rate_hz: float | None = None,
        reference: str | None = None,
        streams: str | Collection[str] | None = None,
        start_ns: int | None = None,
        end_ns: int | None = None,
        tolerance_ns: int | None = None,
        max_gap_ns: int | None = None,
    ) -> Iterator["Row"]:
        """Return an iterator over aligned rows: what every stream showed at one instant, or why nothing.

        Numbers are interpolated to the instant (orientations by SLERP); of images, clouds and events the nearest
        frame is taken; of audio all samples from half a row before to half a row after.

        Args:
            rate_hz: Rows per second, from ``start_ns`` or the first capture on; or
            reference: a stream whose frames are the instants.
            streams: Those to join; None = all that may be read.
            start_ns, end_ns: The first row, and the end, which is no row itself.
            tolerance_ns: How far from the instant the nearest frame may lie; half a period of the stream by default.
            max_gap_ns: Widest gap to interpolate across; three periods of the stream by default.

        Raises:
            UsageError, ConsentError: As :meth:`frames`.
            EpisodeError: If neither or both of rate and reference are given, or a file is damaged.
            PayloadError: If a numeric payload is damaged.
        """
        from sensorium.sync.reading.rows import rows_in

        names = self._named(streams)
        files = self._open([*names, *([reference] if reference else [])])
        window, offset_ns = _window(start_ns, end_ns), self.manifest.timeline.utc_minus_host_ns
        options = AlignedOptions(
            rate_hz,
            reference,
            names,
            tolerance_ns,
            max_gap_ns,
            None if window.start_ns is None else window.start_ns - offset_ns,
            None if window.end_ns is None else window.end_ns - offset_ns,
        )
        return rows_in(files, self.streams, options)

    def events(self) -> Iterator[EpisodeEvent]:
        """Return an iterator over what happened: marks, pauses, losses, events of clocks; ``host_ns`` is host time.

        Raises:
            EpisodeError: If a file is missing or damaged.
        """
        return self._open([]).events()

    def close(self) -> None:
        """Release the files; what was read stays valid."""
        self._is_closed = True
        if self._files is not None:
            self._files.close()
            self._files = None

    def __enter__(self) -> "Episode":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        """Return the frames of all streams that may be read, in order of arrival."""
        return self.frames()

    def __repr__(self) -> str:
        withheld = sum(not stream.is_readable for stream in self.streams.values())
        more = f", {withheld} withheld" if withheld else ""
        return f"<Episode {self.id}: {self.manifest.duration_s:.1f} s, {len(self.streams)} streams{more}>"

    def _frames(self, files: EpisodeFiles, names: Collection[str], window: Window) -> Iterator[Frame]:
        offset_ns = files.timeline.utc_minus_host_ns
        for recorded in frames_in(files, names, window):
            yield Frame(recorded, files.streams[recorded.frame.stream], offset_ns)

    def _named(self, streams: str | Collection[str] | None) -> list[str]:
        if streams is None:
            return [name for name, stream in self.streams.items() if stream.is_readable]
        return [streams] if isinstance(streams, str) else list(streams)

    def _open(self, names: Collection[str], holds: str = "") -> EpisodeFiles:
        """Return the files, opened when something is read first, once each stream may be read in that way."""
        for name in names:
            self._check(name, holds)
        for name, reason in self._ask(names).items():
            raise ConsentError(f"stream {name} of episode {self.id} is withheld: {reason}")
        if self._is_closed:
            raise EpisodeError(f"episode {self.id} was closed; open it again")
        if self._files is None:
            readable = [stream_file(name) for name, stream in self.streams.items() if stream.is_readable]
            self._files = EpisodeFiles(self.path, [DATA_FILE, SYNC_FILE, *readable])
        for name in names:
            if name not in self._files.streams:
                raise EpisodeError(
                    f"the files of episode {self.id} hold no stream {name}; run: sensorium episodes verify"
                )
        return self._files

    def _check(self, name: str, holds: str) -> None:
        stream = self.streams.get(name)
        if stream is None:
            raise UsageError(
                f"episode {self.id} has no stream {name!r}; it has: {', '.join(self.streams) or 'none'}"
            )
        if holds and stream.holds != holds:
            raise UsageError(f"stream {name} holds {stream.holds}: read it with {stream.reader}")
        if stream.withheld:
            raise ConsentError(f"stream {name} of episode {self.id} is withheld: {stream.withheld}")


def _window(start_ns: int | None, end_ns: int | None) -> Window:
    if start_ns is not None and end_ns is not None and end_ns < start_ns:
        raise UsageError(f"the span ends at {end_ns} before it begins at {start_ns}; both are UTC ns")
    return Window(start_ns, end_ns)
