"""The thinker: sees notes of every frame, estimates clocks, publishes maps, aligns, and seals what is closed.

It is never waited for. What it misses, because it lags or dies, is read from the files before the seal.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sensorium.drivers.bus.wire import Declare
from sensorium.errors import SensoriumError
from sensorium.sync.align import Aligner
from sensorium.sync.clocks.watch import WatchEvent
from sensorium.sync.recording.boundary import orphans_of
from sensorium.sync.recording.closing import Closing
from sensorium.sync.recording.notes import Batch, FrameNote, NoteKind, ThoughtKind, unpack_frame
from sensorium.sync.recording.spec import SyncSpec
from sensorium.sync.thinking.clocks import SessionClocks
from sensorium.sync.thinking.episode_thoughts import EpisodeThoughts
from sensorium.sync.thinking.orphans import NOTHING_THERE, recover_orphan
from sensorium.sync.thinking.pace import Pace
from sensorium.sync.thinking.sealed import Sealed
from sensorium.sync.thinking.sealing import Thoughts, seal_closing
from sensorium.sync.thinking.sets import SetKeeper
from sensorium.sync.thinking.tracked import TrackedStream
from sensorium.timebase import SECOND_NS, BaseReading, Clock, Timeline

SUMMARY_NS = SECOND_NS // 2


class Thinker:
    """What is known of the session beside its recording. Call :meth:`take` for each batch, :meth:`step` often."""

    def __init__(self, spec: SyncSpec, clock: Clock, say: Callable[[list[Sequence[Any]]], None]) -> None:
        """``say`` tells the recorder.

        Raises:
            ConfigError: If a key of ``clocks`` cannot be used.
            ClockError: If the PTP hardware clock cannot be read.
        """
        self.sets = SetKeeper()
        self.open: EpisodeThoughts | None = None
        self.sealed: list[Sealed] = []
        self._spec = spec
        self._clock = clock
        self._say = say
        self._clocks = SessionClocks(spec.host_id, spec.clocks, clock)
        self._pace = Pace(spec.thinking, clock.now_ns())
        self._streams: dict[tuple[int, int], TrackedStream] = {}
        self._closing: dict[str, EpisodeThoughts] = {}
        self._next_batch = 0
        self._is_virtual = False
        self._next_summary_ns = 0
        self._touched: dict[tuple[int, int], TrackedStream] = {}
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="sealer")
        self._sealing: dict[str, Future[Path | None]] = {}
        self._heeders: dict[str, Callable[[Sequence[Any]], None]] = {
            NoteKind.DECLARE.value: self._declare,
            NoteKind.ENDED.value: self._end,
            NoteKind.BEGIN.value: self._begin,
            NoteKind.STARTED.value: self._started,
            NoteKind.FRAME.value: lambda note: self._frame(unpack_frame(note)),
            NoteKind.BASE.value: self._base,
            NoteKind.CLOSING.value: self._close,
            NoteKind.CLOSED.value: self._closed,
            NoteKind.DISCARD.value: self._discard,
        }

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be sealed."""
        return bool(self._sealing or self._closing)

    # -- the loop

    def take(self, batch: Batch) -> None:
        """Think about a batch of notes, and tell the recorder what is new."""
        is_other_recorder = batch.number == 0 and self._next_batch > 0
        if is_other_recorder:
            self._let_go()
        elif batch.number != self._next_batch:
            self._miss()
        self._next_batch = batch.number + 1
        for note in batch.notes:
            self._heeders[note[0]](note)
        if is_other_recorder:
            self.seal_left(is_over=False)
        self._publish(batch)
        if self.open is not None:
            for row in self.open.advance(batch.oldest_ns, batch.now_ns):
                self.sets.row(row, batch.now_ns)

    def step(self) -> None:
        """Do what is due: other clocks, summaries, seals."""
        now_ns = self._clock.now_ns()
        if not self._is_virtual:
            self._note_clocks(self._clocks.step())
        self._collect_sealed()
        if now_ns >= self._next_summary_ns:
            self._next_summary_ns = now_ns + SUMMARY_NS
            pace = 1.0 if self._is_virtual else self._pace.next(now_ns)
            for stream in self._streams.values():
                stream.set_pace(pace)
            if self.open is not None:
                self._say([(ThoughtKind.SUMMARY.value, self.open.summary())])

    def _let_go(self) -> None:
        """Give up the episodes of a recorder that is gone; they are caught up and sealed from their files."""
        for episode in (*([self.open] if self.open else ()), *self._closing.values()):
            episode.close()
        self.open = None
        self._closing.clear()

    def _miss(self) -> None:
        """Take note that batches were lost: what is open is caught up from its files."""
        for episode in (*([self.open] if self.open else ()), *self._closing.values()):
            episode.is_whole = False

    def _publish(self, batch: Batch) -> None:
        thoughts: list[Sequence[Any]] = []
        for stream in self._touched.values():
            found = stream.news()
            if found is not None:
                thoughts.append((ThoughtKind.MAP.value, stream.instance, stream.index, found.pack()))
            if self.open is not None:
                self.open.note_clock(stream.tracker.take_events())
        self._touched.clear()
        if self._is_virtual:  # only a replay waits for us
            thoughts.append((ThoughtKind.SEEN.value, batch.oldest_ns))
        self._say(thoughts)

    # -- notes

    def _declare(self, note: Sequence[Any]) -> None:
        declare = Declare.model_validate_json(note[1])
        self._is_virtual = declare.timeline.is_virtual
        for stream in self._streams.values():
            if stream.device == declare.device and stream.instance != declare.instance:
                stream.has_ended = True
        for index in range(len(declare.streams)):
            key = (declare.instance, index)
            if key not in self._streams:
                self._streams[key] = TrackedStream.of(declare, index)
            if self.open is not None:
                self.open.declare(declare.streams[index])

    def _end(self, note: Sequence[Any]) -> None:
        for stream in self._streams.values():
            if stream.instance == note[1]:
                stream.has_ended = True

    def _begin(self, note: Sequence[Any]) -> None:
        _, episode_id, started_ns, reference, timeline, is_from_start = note
        if self.open is not None and self.open.episode_id == episode_id:
            return  # told again after a silence
        folder = self._spec.spool / "open" / episode_id
        aligner = Aligner(reference, self._spec.tolerance_ns)
        self.open = EpisodeThoughts(folder, episode_id, Timeline(*timeline), aligner, started_ns)
        self.open.is_whole &= is_from_start
        self.sets.begin(episode_id, started_ns, reference)
        for stream in self._streams.values():
            if not stream.has_ended:
                self.open.declare(stream.info)
        self._clocks.begin()
        if not self._is_virtual:
            self._note_clocks(self._clocks.standing())

    def _started(self, note: Sequence[Any]) -> None:
        if self.open is not None and self.open.episode_id == note[1]:
            self.open.started_ns = note[2]
            self.sets.begin(self.open.episode_id, note[2], self.open.aligner.reference)

    def _frame(self, note: FrameNote) -> None:
        key = (note.instance, note.stream)
        stream = self._streams.get(key)
        if stream is None:
            self._miss()  # its declaration was lost
            return
        stream.take(note)
        self._touched[key] = stream
        if self.open is not None:
            self.open.take(stream.info, note)
            if note.is_stored and self.sets.wants(stream.info.name):
                frame = self.open.frame_of(stream.info, note)
                self.sets.offer(stream.info, frame, note.stamped.capture_ns, note.taken_ns)

    def _base(self, note: Sequence[Any]) -> None:
        reading = BaseReading(*note[1:])
        alive = [stream for stream in self._streams.values() if not stream.has_ended]
        self._note_clocks(self._clocks.second(reading, alive))
        self._touched.update({(stream.instance, stream.index): stream for stream in alive})
        if self.open is not None:
            self.open.models(alive, reading.raw_ns)

    def _note_clocks(self, events: Iterable[WatchEvent]) -> None:
        for event in events:
            if self.open is not None:
                self.open.event(self._clock.now_ns(), event.subject, event.detail)

    # -- the end of an episode

    def _close(self, note: Sequence[Any]) -> None:
        episode = self.open
        if episode is None or episode.episode_id != note[1]:
            return
        self.open = None
        streams = self._streams.values()
        if self._is_virtual:
            newest = max((t.last_arrival_ns for t in episode.tallies.values()), default=0)
            episode.models(streams, newest)
        episode.finish(streams)
        self._closing[episode.episode_id] = episode

    def _discard(self, note: Sequence[Any]) -> None:
        for episode in (self.open, self._closing.pop(note[1], None)):
            if episode is not None and episode.episode_id == note[1]:
                episode.close()
        if self.open is not None and self.open.episode_id == note[1]:
            self.open = None

    def _closed(self, note: Sequence[Any]) -> None:
        episode_id = note[1]
        episode = self._closing.pop(episode_id, None)
        folder = self._spec.spool / "open" / episode_id
        if not folder.exists() or episode_id in self._sealing:
            return  # it was discarded
        clocks = () if self._is_virtual else self._clocks.verdicts()
        thoughts = episode.thoughts(clocks) if episode is not None and episode.is_whole else None
        self._seal(folder, thoughts)

    def _seal(self, folder: Path, thoughts: Thoughts | None) -> None:
        self._sealing[folder.name] = self._sealer.submit(_seal, folder, self._spec.consent, thoughts)

    def seal_left(self, *, is_over: bool) -> None:
        """Recover what a dead recorder left; at the end, seal what was closed without our being told, too.

        While a recorder lives, what is closed on the disk may be of notes that we have not come to yet.
        """
        known = {self.open.episode_id} if self.open is not None else set()
        known |= self._sealing.keys() | self._closing.keys()
        orphans = set(orphans_of(self._spec.run_dir))
        for folder in sorted((self._spec.spool / "open").glob("*")):
            is_left = folder.name in orphans or (is_over and _is_closed(folder))
            if folder.name not in known and is_left:
                self._seal(folder, None)

    def _collect_sealed(self) -> None:
        for episode_id, future in list(self._sealing.items()):
            if not future.done():
                continue
            del self._sealing[episode_id]
            found = _outcome(episode_id, future)
            self.sealed.append(found)
            self._say([(ThoughtKind.SEALED.value, episode_id, str(found.path or ""), found.error)])

    def close(self) -> None:
        """Seal all that is closed and wait for it."""
        self._let_go()  # their files may be finished without our having been told
        self.seal_left(is_over=True)
        self._sealer.shutdown(wait=True)
        self._collect_sealed()
        self._clocks.close()


def _is_closed(folder: Path) -> bool:
    try:
        return Closing.load(folder) is not None
    except SensoriumError:
        return True  # it cannot be read: recovery says so


def _seal(folder: Path, consent: Path, thoughts: Thoughts | None) -> Path | None:
    closing = Closing.load(folder) if thoughts is not None else None
    if closing is None or thoughts is None:
        return recover_orphan(folder, consent)
    return seal_closing(folder, closing, thoughts)


def _outcome(episode_id: str, future: "Future[Path | None]") -> Sealed:
    error = future.exception()
    if error is None:
        path = future.result()
        return Sealed(episode_id, path, remark="" if path else NOTHING_THERE)
    if isinstance(error, (SensoriumError, OSError)):
        return Sealed(episode_id, None, str(error))
    raise error
