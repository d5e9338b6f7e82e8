"""The episode that is being written: its files, accounts and journal, until its files are closed."""

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.frame import StreamInfo
from sensorium.sync.episode.chunk_accounts import Written
from sensorium.sync.episode.entries import EpisodeEvent
from sensorium.sync.episode.facts import LossBounds, SessionFacts
from sensorium.sync.episode.files import CALIBRATION_FILE
from sensorium.sync.episode.scene import scene_messages
from sensorium.sync.episode.writer import EpisodeWriter, WriterPolicy
from sensorium.sync.recording.accounting import Account
from sensorium.sync.recording.closing import ClosedAccount, ClosedStream, pack_reasons
from sensorium.sync.recording.journal import Journal, JournalInstance, JournalStream
from sensorium.sync.recording.memory_notes import forget
from sensorium.sync.recording.spec import SyncSpec
from sensorium.sync.recording.streams import Instance
from sensorium.timebase import SECOND_NS, Timeline

_WRITER_SHARE = 0.85
"""Of ``flush_s``; the rest passes until it is seen that a recorder died, and what drivers send is the next one's."""

NOT_STARTED = -1
"""Start of a replay's episode until its first frame says when that was."""


@dataclass(slots=True)
class StreamRecord:
    """What the recorder counts of one stream of the episode."""

    info: StreamInfo
    samples: int = 0
    denials: Counter[str] = field(default_factory=Counter)
    clock_events: Counter[str] = field(default_factory=Counter)


REPLACED = "its device has declared the stream anew"


class OpenEpisode:
    """One episode from its first file to the note that lets it be sealed."""

    def __init__(
        self, spec: SyncSpec, episode_id: str, timeline: Timeline, reference: str, started_ns: int
    ) -> None:
        """Make its folder in ``open/``.

        Raises:
            EpisodeError: If the disk does not take it.
        """
        self.episode_id = episode_id
        self.folder = spec.spool / "open" / episode_id
        settings = spec.recorder
        policy = WriterPolicy(
            flush_s=_WRITER_SHARE * settings.flush_s,
            sync_s=settings.sync_s,
            min_free_bytes=spec.disk.min_free_bytes,
        )
        self.writer = EpisodeWriter(self.folder, episode_id, timeline, policy)
        self.timeline = timeline
        self.reference = reference
        self.started_ns = started_ns
        self.streams: dict[str, StreamRecord] = {}
        self.accounts: list[tuple[str, int, Account]] = []
        self.marks: list[tuple[int, str]] = []
        self.limitations: list[str] = list(spec.limitations)
        self.bounds = LossBounds(settings.flush_s, settings.sync_s)
        self._facts: SessionFacts = spec.facts
        self._consent = str(spec.consent)
        self._tolerance_ns = spec.tolerance_ns
        self._instances: dict[int, JournalInstance] = {}
        self._run_dir = spec.run_dir
        self._saving: Future[None] | None = None

    def prepare(
        self, infos: Iterable[StreamInfo], path: Path | None, calibration: RigCalibration | None
    ) -> None:
        """Do ahead of time what waits for the disk: places for these streams and for the calibration.

        Raises:
            EpisodeError: If the disk does not take it.
        """
        for info in infos:
            self.writer.declare(info)
        self._place_calibration(path, calibration)

    def join(self, instance: Instance) -> None:
        """Open the accounts of an instance, and note where they begin."""
        begins = {}
        for name, stream in instance.streams.items():
            self.writer.declare(stream.info)
            self.streams.setdefault(name, StreamRecord(stream.info))
            account = stream.account.open_account()
            self.accounts.append((name, instance.number, account))
            begins[name] = JournalStream(account.start_seq, pack_reasons(stream.account.reported))
        declare = instance.declare
        self._instances[instance.number] = JournalInstance(declare.device, declare.counters, begins)
        self._save_journal()

    def _save_journal(self) -> None:
        """Note it at once, and beside the files before the first chunk that needs it."""
        instances = {str(number): found for number, found in self._instances.items()}
        journal = Journal(
            self._facts, self.reference, self._tolerance_ns, self._consent, instances, self.bounds
        )
        journal.note(self._run_dir, self.episode_id)
        self._saving = self.writer.run(partial(journal.save, self.folder))

    def step(self, now_ns: int) -> None:
        """Let the writer do what is due.

        Raises:
            EpisodeError: If the disk did not take something.
        """
        self.writer.step(now_ns)
        if self._saving is not None and self._saving.done():
            saving, self._saving = self._saving, None
            saving.result()

    def is_changed_by(self, infos: Iterable[StreamInfo]) -> bool:
        """Return whether a device came back with other settings than it had in this episode."""
        return any(info.name in self.streams and self.streams[info.name].info != info for info in infos)

    def takes(self, info: StreamInfo) -> bool:
        """Return whether frames of a stream that is declared like this go into this episode.

        Not those of before its device declared itself anew, with other streams or another form of them.
        """
        record = self.streams.get(info.name)
        return record is not None and (record.info is info or record.info == info)

    def store_calibration(self, path: Path | None, calibration: RigCalibration | None) -> None:
        """Put the calibration in force beside the data, and into it for viewers."""
        if calibration is not None:
            self._place_calibration(path, calibration)
            self.writer.write_calibration(calibration, self.started_ns)

    def _place_calibration(self, path: Path | None, calibration: RigCalibration | None) -> None:
        """Do what of it waits for the disk; again is harmless."""
        target = self.folder / CALIBRATION_FILE
        if path is None or calibration is None or target.exists():
            return
        shutil.copyfile(path, target)
        for topic, message in scene_messages(calibration, 0):
            self.writer.declare_message(topic, type(message))

    def event(
        self, host_ns: int, kind: str, stream: str, detail: str, fields: Mapping[str, str] | None = None
    ) -> None:
        """Write down that something happened.

        Raises:
            WriteError: If the disk is full.
        """
        self.writer.write_event(EpisodeEvent(host_ns, kind, stream, detail, fields or {}))

    def balances(self, stream: str) -> list[Account]:
        """Return the accounts of a stream, one for each driver instance."""
        return [account for name, _, account in self.accounts if name == stream]

    @property
    def has_personal(self) -> bool:
        """Whether a stream of it needs consent."""
        return any(record.info.is_personal for record in self.streams.values())

    @property
    def has_produced(self) -> bool:
        return any(account.produced for _, _, account in self.accounts)

    def closed_streams(self, by_pulses: Mapping[str, str]) -> tuple[ClosedStream, ...]:
        """Return what was counted of each stream; ``by_pulses`` names the clock method of triggered ones."""
        return tuple(
            ClosedStream(
                record.info, dict(record.denials), by_pulses.get(name, ""), dict(record.clock_events)
            )
            for name, record in self.streams.items()
        )

    def closed_accounts(self) -> tuple[ClosedAccount, ...]:
        """Return the balances with what the files hold; call when the writer has finished."""
        written = self.writer.written()
        return tuple(
            ClosedAccount.of(name, number, account, written.get((name, number), Written()))
            for name, number, account in self.accounts
        )

    def late_sync(self) -> str:
        """Return the sentence for the manifest if the disk was too slow for ``sync_s``; "" if it kept up."""
        lag_s, promised_s = self.writer.sync_lag_ns / SECOND_NS, self.bounds.sync_s
        if promised_s is None or lag_s <= promised_s:
            return ""
        return (
            f"the disk was {lag_s:.1f} s behind at worst, where sync_s is {promised_s:g} s: "
            "a power cut would have cost that much"
        )

    def forget(self) -> None:
        """Let go of the note for a crash: the episode is closed, or gone."""
        forget(self._run_dir, self.episode_id)

    def remove(self) -> None:
        """Delete what was written."""
        shutil.rmtree(self.folder)
        self.forget()
