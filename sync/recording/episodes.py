"""Opens and closes the episodes of a session; files are finished in a thread, nobody waits for them."""

import contextlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.bus.credits import Held
from sensorium.drivers.frame import StreamInfo
from sensorium.errors import CalibrationError, EpisodeError
from sensorium.sync.clocks.triggered import BY_PULSES
from sensorium.sync.episode.mcap_records import WriteError
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.recording.boundary import forget_handover, note_handover
from sensorium.sync.recording.check_book import CheckBook
from sensorium.sync.recording.closing import Closing, pack_reasons
from sensorium.sync.recording.files_ahead import FilesAhead
from sensorium.sync.recording.journal import JournalStream
from sensorium.sync.recording.notes import NoteKind, ThinkerLink
from sensorium.sync.recording.open_episode import NOT_STARTED, OpenEpisode
from sensorium.sync.recording.reference import reference_among
from sensorium.sync.recording.roster import Roster
from sensorium.sync.recording.spec import SyncSpec
from sensorium.sync.recording.streams import Instance
from sensorium.sync.recording.triggers import SessionTriggers
from sensorium.timebase import Clock, Timeline, boot_id


class Episodes:
    """The open episode of a session, and those whose files are being finished.

    Attributes:
        open: What is being written; None between episodes.
    """

    def __init__(
        self, spec: SyncSpec, roster: Roster, triggers: SessionTriggers, link: ThinkerLink, clock: Clock
    ) -> None:
        """Load the calibration that the episodes are recorded under.

        Raises:
            CalibrationError: If it cannot be read.
        """
        self.open: OpenEpisode | None = None
        self._spec = spec
        self._roster = roster
        self._triggers = triggers
        self._link = link
        self._clock = clock
        self._calibration = _load_calibration(spec.calibration)
        self._closer = ThreadPoolExecutor(1, thread_name_prefix="closer")
        self._finishing: list[tuple[OpenEpisode, Future[None]]] = []
        self._has_handed_over = False
        self._ahead = FilesAhead(spec, clock, self._calibration)

    @property
    def calibration_id(self) -> str:
        return self._calibration.calibration_id if self._calibration else ""

    # -- the beginning

    def begin(self, started_ns: int, limitations: Iterable[str]) -> OpenEpisode:
        """Open an episode that all present drivers take part in; there must be none.

        Args:
            started_ns: Host time; ``NOT_STARTED`` in a replay whose first frame will say.
            limitations: What its manifest is to say beside what is found out.

        Raises:
            EpisodeError: If the disk does not take it.
        """
        timeline, reference = self._timeline(), self._reference()
        episode = self._ahead.take(timeline, reference, self._infos())
        if episode is None:
            episode_id = new_ulid(self._clock.utc_ns())
            episode = OpenEpisode(self._spec, episode_id, timeline, reference, started_ns)
        episode.started_ns = started_ns
        episode.limitations += limitations
        self.open = episode
        if started_ns != NOT_STARTED:
            episode.store_calibration(self._spec.calibration, self._calibration)
        self._triggers.begin()
        self.tell(episode, is_from_start=True)
        for instance in self._roster.in_rig_order():
            episode.join(instance)
        self._forget_handover()
        return episode

    def prepare(self) -> None:
        """Have the files of the next episode made, in the background; again changes nothing."""
        timeline = self._timeline()
        if not timeline.is_virtual:
            self._ahead.prepare(timeline, self._reference(), self._infos())

    def _infos(self) -> tuple[StreamInfo, ...]:
        instances = self._roster.in_rig_order()
        return tuple(stream.info for each in instances for stream in each.streams.values())

    def _reference(self) -> str:
        return self._spec.reference or reference_among(s.info for _, s in self._roster.streams())

    def _timeline(self) -> Timeline:
        timeline = self._roster.timeline
        if timeline is not None and timeline.is_virtual:
            return timeline
        return Timeline(self._spec.host_id, self._clock.utc_minus_host_ns(), boot_id=boot_id())

    def join(self, instance: Instance) -> None:
        """Let a driver that has just come take part in the open episode.

        Raises:
            WriteError: If the disk does not take its channels.
        """
        if self.open is not None:
            self.open.join(instance)
            refused = instance.declare.refused_priority
            if refused and refused not in self.open.limitations:
                self.open.limitations.append(refused)

    def begin_virtual(self, episode: OpenEpisode, started_ns: int) -> None:
        """Note when the episode of a replay began: at the arrival of its first frame."""
        episode.started_ns = started_ns
        episode.store_calibration(self._spec.calibration, self._calibration)
        self._link.note((NoteKind.STARTED.value, episode.episode_id, started_ns))

    def tell(self, episode: OpenEpisode, *, is_from_start: bool) -> None:
        """Tell the thinker that an episode is open."""
        timeline = (
            episode.timeline.host_id,
            episode.timeline.utc_minus_host_ns,
            episode.timeline.is_virtual,
            episode.timeline.boot_id,
        )
        self._link.note(
            (
                NoteKind.BEGIN.value,
                episode.episode_id,
                episode.started_ns,
                episode.reference,
                timeline,
                is_from_start,
            )
        )

    # -- the end

    def take(self, *, is_virtual: bool) -> OpenEpisode | None:
        """End the accounts of the open episode and return it; no further frame goes into it."""
        episode = self.open
        if episode is None:
            return None
        if not is_virtual:
            self._roster.settle_silent()
        self.open = None
        for _, stream in self._roster.streams():
            stream.account.take_account()
        self._hand_over()
        episode.limitations += self._roster.problems
        self._roster.problems.clear()
        return episode

    def _hand_over(self) -> None:
        ends = {
            instance.declare.counters: {
                name: JournalStream(stream.account.next_seq, pack_reasons(stream.account.reported))
                for name, stream in instance.streams.items()
            }
            for instance in self._roster
        }
        with contextlib.suppress(
            OSError
        ):  # no room in memory: then what a kill right now costs is in no balance
            note_handover(self._spec.run_dir, ends)
            self._has_handed_over = True

    def _forget_handover(self) -> None:
        if self._has_handed_over:
            self._has_handed_over = False
            forget_handover(self._spec.run_dir)

    def close(
        self, episode: OpenEpisode, ended_ns: int, rejected: Mapping[str, int], book: CheckBook
    ) -> None:
        """Finish the files of an episode that was taken, and leave the note for its seal."""
        self._link.note((NoteKind.CLOSING.value, episode.episode_id))
        names = [name for name in episode.streams if self._triggers.is_by_pulse(name)]
        closing = partial(
            Closing,
            facts=self._spec.facts,
            episode_id=episode.episode_id,
            timeline=episode.timeline,
            reference=episode.reference,
            tolerance_ns=self._spec.tolerance_ns,
            started_ns=episode.started_ns,
            ended_ns=ended_ns,
            now_utc_ns=self._clock.utc_ns(),
            consent=str(self._spec.consent),
            streams=episode.closed_streams(dict.fromkeys(names, BY_PULSES)),
            marks=tuple(episode.marks),
            rejected=dict(rejected),
            verdicts=book.verdicts(),
            checks=book.records(),
            clocks=self._triggers.verdicts(with_seconds=not episode.timeline.is_virtual),
            calibration_id=self.calibration_id,
            bounds=episode.bounds,
        )
        # Killed from here on, it ends where the next one begins, however long the disk takes for its files.
        with contextlib.suppress(WriteError):
            noted = closing(accounts=episode.closed_accounts(), limitations=tuple(episode.limitations))
            noted.note(self._spec.run_dir)
        self._finishing.append((episode, self._closer.submit(_finish, episode, closing)))

    def remove(self, episode: OpenEpisode) -> None:
        """Delete an episode that was taken."""
        self._link.note((NoteKind.DISCARD.value, episode.episode_id))
        self._finishing.append((episode, self._closer.submit(_remove, episode)))

    def settled(self) -> list[Held]:
        """Return what frames held whose bytes are on disk, or given up, since the last call."""
        found = self.open.writer.take_settled() if self.open is not None else []
        for episode, _ in self._finishing:
            found += episode.writer.take_settled()
        return found

    def collect(self) -> tuple[list[Held], str]:
        """Return what the frames of finished episodes held, and what went wrong; tell the thinker of them."""
        if self.open is None:
            self._forget_handover()  # none follows at once
        held: list[Held] = []
        problem = ""
        for entry in list(self._finishing):
            episode, finished = entry
            if finished.done():
                self._finishing.remove(entry)
                held += episode.writer.take_settled()
                problem = problem or _problem_of(episode, finished.exception())
                self._link.note((NoteKind.CLOSED.value, episode.episode_id))
        return held, problem

    def wait(self) -> None:
        """Return when all files are finished."""
        self._closer.shutdown(wait=True)
        self._ahead.close()


def _finish(episode: OpenEpisode, closing: "partial[Closing]") -> None:
    """Finish an episode's files and leave the note for its seal; runs in a thread.

    Raises:
        EpisodeError: If the disk did not take the note; what it took can be recovered.
    """
    limitations = tuple(episode.limitations)
    try:
        episode.writer.finish().result()
    except EpisodeError as err:
        limitations = (*limitations, f"not everything could be written: {err}")
    limitations += tuple(filter(None, [episode.late_sync()]))
    closing(accounts=episode.closed_accounts(), limitations=limitations).save(episode.folder)
    episode.forget()


def _remove(episode: OpenEpisode) -> None:
    try:
        episode.writer.finish().result()
    finally:
        episode.remove()


def _problem_of(episode: OpenEpisode, error: BaseException | None) -> str:
    """Return what kept an episode from being finished; "" if nothing did.

    Raises:
        BaseException: What is no trouble with the disk.
    """
    if error is None:
        return ""
    if isinstance(error, (EpisodeError, OSError)):
        return f"episode {episode.episode_id}: not everything could be written: {error}"
    raise error


def _load_calibration(path: Path | None) -> RigCalibration | None:
    if path is None:
        return None
    try:
        return RigCalibration.load(path)
    except CalibrationError as err:
        raise CalibrationError(f"calibration {path}: {err}") from err
