"""What is found out about one episode while it is recorded."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.errors import EpisodeError
from sensorium.sync.align import Aligner, SyncRow
from sensorium.sync.clocks.model import ClockEvent, credible_skew_ppm
from sensorium.sync.distribution import Distribution
from sensorium.sync.episode.entries import EpisodeEvent
from sensorium.sync.episode.sync_file import SyncFile
from sensorium.sync.episode.tail import EpisodeTail
from sensorium.sync.recording.notes import FrameNote
from sensorium.sync.thinking.sealing import Thoughts
from sensorium.sync.thinking.tally import StreamTally
from sensorium.sync.thinking.tracked import TrackedStream
from sensorium.timebase import Timeline
from sensorium.verdict import Verdict


class EpisodeThoughts:
    """Tallies, alignment and ``sync.mcap`` of one open episode.

    Attributes:
        is_whole: Every frame so far was seen; else the rest is read from the files before the seal.
    """

    def __init__(
        self, folder: Path, episode_id: str, timeline: Timeline, aligner: Aligner, started_ns: int
    ) -> None:
        self.folder = folder
        self.episode_id = episode_id
        self.timeline = timeline
        self.started_ns = started_ns
        self.aligner = aligner
        self.tallies: dict[str, StreamTally] = {}
        self.latency_ns: dict[str, Distribution] = {}
        self.is_whole = True
        self.tail = EpisodeTail(folder, timeline.utc_minus_host_ns)
        self._sync: SyncFile | None = None
        try:
            self._sync = SyncFile(folder, episode_id, timeline)
        except EpisodeError:
            self.is_whole = False  # another thinker began it; whoever seals writes it anew

    def declare(self, info: StreamInfo) -> None:
        """Make a stream known; again is harmless."""
        if info.name not in self.tallies:
            self.tallies[info.name] = StreamTally(info)
            self.latency_ns[info.name] = Distribution()
            if not info.reference_of:
                self.aligner.declare(info)

    def take(self, info: StreamInfo, note: FrameNote) -> None:
        """Take in one frame of the episode, stored or withheld."""
        is_original = not info.reference_of
        if not note.is_stored:
            if is_original:
                self.aligner.withhold(info.name)
            return
        self.tallies[info.name].add(note.count, note.driver_bytes, note.arrival_ns, note.stamped)
        self.latency_ns[info.name].add(max(0, note.taken_ns - int(note.arrival_ns[-1])))
        if is_original:
            bound_ns = note.stamped.uncertainty.total95_ns
            self.aligner.add(info.name, note.seq, note.count, note.stamped.capture_ns, bound_ns)

    def frame_of(self, info: StreamInfo, note: FrameNote) -> Frame:
        """Return the frame without its payload, which lies in the files."""
        return Frame(info.name, note.seq, note.count, None, note.arrival_ns, b"")

    def note_clock(self, events: Iterable[ClockEvent]) -> None:
        """Keep what happened to a stream's clock."""
        for event in events:
            if event.stream in self.tallies:
                self.tallies[event.stream].note_clock((event,))
            kind = event.kind.value
            self.event(event.host_ns, event.stream, f"{kind}: {event.detail}", kind)

    def event(self, host_ns: int, stream: str, detail: str, kind: str = "") -> None:
        """Write down something about a clock."""
        fields = {"by": "thinker", **({"kind": kind} if kind else {})}
        if self._sync is not None:
            self._sync.event(EpisodeEvent(host_ns, "clock", stream, detail, fields))

    def advance(self, oldest_ns: int, now_ns: int) -> Iterator[SyncRow]:
        """Yield the rows that are decided by the arrivals up to ``oldest_ns``."""
        for row in self.aligner.advance(oldest_ns):
            if self._sync is not None:
                self._sync.row(row)
            yield row
        self._write(now_ns)

    def models(self, streams: Iterable[TrackedStream], host_ns: int) -> None:
        """Write the clock models as they stand."""
        for stream in streams:
            model = stream.tracker.model
            if model is not None and not stream.has_own_time and self._sync is not None:
                self._sync.model(stream.info.name, stream.instance, host_ns, model)

    def _write(self, now_ns: int) -> None:
        if self._sync is not None:
            try:
                self._sync.step(now_ns)
            except EpisodeError:  # the disk is full: whoever seals tries again
                self.abandon()

    def finish(self, streams: Iterable[TrackedStream]) -> None:
        """Decide the last rows, and close the file."""
        for stream in streams:
            tally = self.tallies.get(stream.info.name)
            if tally is None:
                continue
            model = stream.tracker.model
            tally.clock_method = stream.method
            if model is not None and not stream.has_own_time:
                tally.skew_ppm = credible_skew_ppm(model.skew_ppm)
        for row in self.aligner.finish():
            if self._sync is not None:
                self._sync.row(row)
        self.tail.close()
        if self._sync is not None:
            try:
                self._sync.close()
            except EpisodeError:
                self.abandon()

    def abandon(self) -> None:
        """Give up what is written here; the seal catches up from the recorder's files."""
        self.is_whole = False
        if self._sync is not None:
            self._sync.abandon()
            self._sync = None

    def close(self) -> None:
        """Let go of the files of an episode that was discarded."""
        self.abandon()
        self.tail.close()

    def thoughts(self, clocks: tuple[Verdict, ...]) -> Thoughts:
        """Return what goes into the manifest."""
        return Thoughts(self.tallies, self.aligner.results(), clocks)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return numbers of each stream so far, for ``status``."""
        return {
            name: {
                "rate_hz": tally.rate_hz,
                "uncertainty_p95_us": (tally.bound_ns.percentile(95) or 0.0) / 1e3,
                "latency_p50_us": (self.latency_ns[name].percentile(50) or 0.0) / 1e3,
                "latency_p99_us": (self.latency_ns[name].percentile(99) or 0.0) / 1e3,
            }
            for name, tally in self.tallies.items()
        }
