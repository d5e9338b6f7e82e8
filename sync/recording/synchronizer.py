"""Joins the streams of a rig: accounts, stamps, consents, writes, aligns. Nothing here waits for anybody.

A frame's way: bus -> account (is anything missing before it?) -> clock tracker (when was it captured?) ->
consent (may it be stored?) -> writer -> aligner. Credit for its bytes returns to the driver at the end.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.bus.counters import Counts, read_counters
from sensorium.drivers.bus.credits import Held
from sensorium.drivers.bus.live import LivePublisher
from sensorium.drivers.bus.receiver import BusReceiver
from sensorium.drivers.bus.wire import Control, Declare, End, Heartbeat, Inbound, Lost
from sensorium.drivers.frame import REFERENCE_ORDER, Frame, Place, StreamInfo
from sensorium.errors import CalibrationError, ConfigError, EpisodeError, WireError
from sensorium.sync.align import Aligner, SyncRow
from sensorium.sync.clocks.model import Stamped
from sensorium.sync.clocks.triggered import BY_PULSES
from sensorium.sync.clocks.watch import WatchEvent
from sensorium.sync.consent.decisions import Decision, StreamConsent
from sensorium.sync.consent.grants import ConsentLedger, Purpose
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.entries import EpisodeEvent
from sensorium.sync.episode.mcap_records import WriteError
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.episode.writer import EpisodeWriter, WriterPolicy, storable
from sensorium.sync.recording.accounting import Account
from sensorium.sync.recording.check_book import CheckBook, CheckMessage, JudgedWindow
from sensorium.sync.recording.clocks import SessionClocks
from sensorium.sync.recording.permit import Permit
from sensorium.sync.recording.sealing import Closing, seal_closing
from sensorium.sync.recording.sets import SetKeeper
from sensorium.sync.recording.spec import Journal, JournalInstance, JournalStream, SyncSpec, pack_reported
from sensorium.sync.recording.streams import Instance, LiveStream, StreamTally, instance_of
from sensorium.sync.recording.triggers import Due, SessionTriggers
from sensorium.timebase import SECOND_NS, Clock, Timeline, read_bases
from sensorium.verdict import Status, Verdict

BATCH = 256
HOUSEKEEPING_NS = SECOND_NS // 50
BASES_NS = SECOND_NS
SILENT_NS = 2 * SECOND_NS
NOT_STARTED = -1
"""Start of a replay's episode until its first frame says when that was."""
DECLARE_GRACE_NS = 20 * SECOND_NS
_FASTEST_REFERENCE_HZ = 100.0


@dataclass(slots=True)
class OpenEpisode:
    """The episode that is being written."""

    episode_id: str
    folder: Path
    writer: EpisodeWriter
    timeline: Timeline
    started_ns: int
    aligner: Aligner
    tallies: dict[str, StreamTally] = field(default_factory=dict)
    accounts: list[tuple[str, int, Account]] = field(default_factory=list)
    instances: dict[int, JournalInstance] = field(default_factory=dict)
    marks: list[tuple[int, str]] = field(default_factory=list)
    limitations: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Sealed:
    """An episode that is finished and signed, or the reason why it could not be."""

    episode_id: str
    path: Path | None
    error: str = ""


class Synchronizer:
    """One recording session. Call :meth:`step` in a loop; commands come from the service around it."""

    def __init__(
        self, spec: SyncSpec, receiver: BusReceiver, live: LivePublisher, consent: ConsentStore, clock: Clock
    ) -> None:
        self.spec = spec
        self.receiver = receiver
        self.live = live
        self.instances: dict[int, Instance] = {}
        self.episode: OpenEpisode | None = None
        self.sealed: list[Sealed] = []
        self.checks = CheckBook()
        self.fault = ""
        """Why capture stopped by itself (a full disk); "" while all is well."""
        self._clock = clock
        self._consent_store = consent
        self._ledger: ConsentLedger = consent.poll(clock.utc_ns())
        self._consents: dict[str, StreamConsent] = {}
        self._live_consents: dict[str, StreamConsent] = {}
        self._calibration = _load_calibration(spec.calibration)
        self._clocks = SessionClocks(spec.host_id, spec.clocks, clock)
        self._triggers = SessionTriggers(spec.triggers)
        self._waiting: dict[int, bytes] = {}
        self._held: dict[tuple[int, str, int], Held] = {}
        self._started_ns = clock.now_ns()
        self._has_started = False
        self.permit = Permit(spec, self._calibration.calibration_id if self._calibration else "")
        self._is_armed = spec.start == "immediately" and self.permit.refusal is None
        self._is_held = False
        self._arrival_ns = 0
        self._next_housekeeping_ns = 0
        self._next_base_ns = 0
        self.sets = SetKeeper()
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="sealer")
        self._sealing: list[tuple[str, Future[Path]]] = []

    # -- time

    @property
    def timeline(self) -> Timeline | None:
        """The timeline of the streams: the source's for a replay, this machine's otherwise."""
        for instance in self.instances.values():
            return instance.declare.timeline
        return None

    @property
    def is_virtual(self) -> bool:
        timeline = self.timeline
        return timeline is not None and timeline.is_virtual

    @property
    def is_paused(self) -> bool:
        return self._is_held or self._ledger.is_paused

    def now_ns(self) -> int:
        """Return now on the streams' host clock: of a replay, the latest arrival."""
        return self._arrival_ns if self.is_virtual else self._clock.now_ns()

    def _capture_now_utc_ns(self) -> int:
        """Return now on the clock of the captures, which for a replay lies in the past."""
        timeline = self.timeline
        if timeline is not None and timeline.is_virtual:
            return self._arrival_ns + timeline.utc_minus_host_ns
        return self._clock.utc_ns()

    # -- the loop

    def step(self) -> int:
        """Take in one batch and do what is due; return how many messages there were."""
        handled = 0
        for inbound in self.receiver.receive(BATCH):
            handled += 1
            self._take(inbound)
        now_ns = self._clock.now_ns()
        self.receiver.step(now_ns)
        if now_ns >= self._next_housekeeping_ns:
            self._next_housekeeping_ns = now_ns + HOUSEKEEPING_NS
            self._housekeeping(now_ns)
        return handled

    def _take(self, inbound: Inbound) -> None:
        message = inbound.message
        if isinstance(message, tuple):
            number, frame = message
            instance = self.instances.get(number)
            assert inbound.held is not None
            if instance is None:
                self.receiver.rejected["frame of an undeclared instance"] += 1
                self.receiver.release([inbound.held])
                return
            instance.heard_ns = self._clock.now_ns()
            if not self._take_frame(instance, frame, inbound.held):
                self.receiver.release([inbound.held])
        else:
            self._take_control(inbound.identity, message)

    def _take_control(self, identity: bytes, message: Control) -> None:
        if isinstance(message, Declare):
            self._declare(identity, message)
            return
        instance = self.instances.get(message.instance)
        if instance is None:
            self.receiver.rejected[f"{message.kind} of an undeclared instance"] += 1
            return
        instance.heard_ns = self._clock.now_ns()
        if isinstance(message, Lost):
            stream = instance.streams.get(message.stream)
            if stream is not None:
                stream.account.report_lost(message.seq, message.count, message.place, message.reason)
                self._note_loss(message)
        elif isinstance(message, End):
            for name, next_seq in message.next_seq.items():
                if name in instance.streams:
                    instance.streams[name].account.reach(next_seq)
            instance.has_ended = True
            instance.error = message.error
            self.receiver.forget(message.instance)
            self._declare_path(message.instance).unlink(missing_ok=True)
            if message.error:
                self._event("driver", instance.declare.device, f"ended with an error: {message.error}")
        elif not isinstance(message, Heartbeat):
            self.receiver.rejected[f"unexpected {message.kind}"] += 1

    def _note_loss(self, loss: Lost) -> None:
        detail = f"{loss.count} samples from {loss.seq} lost at {loss.place.value}: {loss.reason}"
        fields = {
            "seq": str(loss.seq),
            "count": str(loss.count),
            "place": loss.place.value,
            "reason": loss.reason,
        }
        self._event("loss", loss.stream, detail, fields)

    # -- drivers

    def _declare(self, identity: bytes, declare: Declare) -> None:
        declare = self._triggers.describe(declare)
        problem = self._conflict(declare)
        if problem:
            self.receiver.rejected[problem] += 1
            return
        for known in self.instances.values():
            if (
                known.declare.device == declare.device
                and known.number != declare.instance
                and not known.has_ended
            ):
                self._settle(known)
                self.receiver.forget(known.number)
                self._declare_path(known.number).unlink(missing_ok=True)
        if declare.instance not in self.instances:
            instance = instance_of(declare, identity, self._clock.now_ns())
            self.instances[declare.instance] = instance
            self._save_declare(declare)
            self._admit(instance)
            if self.episode is not None and self._is_changed(self.episode, declare):
                self.stop()  # a stream is one thing throughout an episode
                self.start()
            elif self.episode is not None:
                self._join(self.episode, instance)
        self._waiting[declare.instance] = identity
        self._welcome_when_ready()

    def _conflict(self, declare: Declare) -> str:
        timeline = self.timeline
        if timeline is not None and timeline.is_virtual != declare.timeline.is_virtual:
            return f"device {declare.device}: a replay and live devices cannot share a session"
        try:
            for info in declare.streams:
                storable(info)
        except ConfigError as err:
            return f"device {declare.device}: {err}"
        for known in self.instances.values():
            if known.declare.device != declare.device:
                for info in declare.streams:
                    if info.name in known.streams:
                        return (
                            f"device {declare.device}: stream {info.name} belongs to {known.declare.device}"
                        )
        return ""

    def _is_changed(self, episode: OpenEpisode, declare: Declare) -> bool:
        """Return whether a device came back with other settings than it had in this episode."""
        tallies = episode.tallies
        return any(info.name in tallies and tallies[info.name].info != info for info in declare.streams)

    def _welcome_when_ready(self) -> None:
        """Let drivers start together, so that every account of the first episode begins at zero."""
        declared = {instance.declare.device for instance in self.instances.values()}
        is_late = self._clock.now_ns() - self._started_ns > DECLARE_GRACE_NS
        if not (self._has_started or declared.issuperset(self.spec.devices) or (is_late and declared)):
            return
        if not self._has_started:
            self._has_started = True
            if self._is_armed:
                self.start()
        for number, identity in self._waiting.items():
            self.receiver.welcome(identity, self.instances[number].declare)
        self._waiting.clear()

    def exclude(self, device: str) -> None:
        """Do not wait for a device that failed to open."""
        remaining = tuple(name for name in self.spec.devices if name != device)
        self.spec = self.spec.model_copy(update={"devices": remaining})
        self._welcome_when_ready()

    def _settle(self, instance: Instance) -> None:
        problem = instance.settle()
        if problem and self.episode is not None:
            self.episode.limitations.append(problem)

    def _save_declare(self, declare: Declare) -> None:
        path = self._declare_path(declare.instance)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(declare.model_dump_json())

    def _declare_path(self, instance: int) -> Path:
        """Return where a connected driver is noted for a synchronizer that comes after this one."""
        return self.spec.run_dir / "declares" / f"{instance:08x}.json"

    def adopt(self, declares: Iterable[Declare], read: Callable[[Path], Counts] = read_counters) -> None:
        """Know the drivers that a synchronizer before this one knew, at the boundary that it left.

        Accounts go on where those of the torn episode ended: at what ``read`` says of the counter files, which
        must be what the recovery was told.
        """
        for declare in declares:
            identity = b"\1" + declare.instance.to_bytes(8, "little")
            instance = instance_of(declare, identity, self._clock.now_ns())
            problem = instance.settle(read)
            instance.has_ended = False
            if problem:
                continue
            self.instances[declare.instance] = instance
            self._admit(instance)
            self._waiting[declare.instance] = identity
        if self.instances:
            self._welcome_when_ready()

    # -- frames

    def _take_frame(self, instance: Instance, frame: Frame, held: Held) -> bool:
        """Account for a frame, stamp and record it; True when it waits for its trigger and keeps its credit."""
        stream = instance.streams.get(frame.stream)
        if stream is None:
            self.receiver.rejected[f"frame of undeclared stream {frame.stream}"] += 1
            return False
        try:
            stream.check(frame, None if self.is_virtual else self._clock.now_ns())
        except WireError as err:
            self.receiver.rejected[str(err)] += 1
            return False
        if not stream.account.arrive(frame.seq, frame.count):
            return False
        stamped = stream.stamp(frame)
        self._arrival_ns = max(self._arrival_ns, int(frame.arrival_ns[-1]))
        if not self._triggers.concerns(frame):
            self._commit(instance, stream, frame, stamped)
            return False
        self._held[instance.number, frame.stream, frame.seq] = held
        now_ns = self._clock.now_ns()
        self._commit_all(self._triggers.take(instance, stream, frame, stamped, now_ns))
        self._commit_all(self._triggers.due(now_ns))
        return True

    def _commit_all(self, found: Iterable[Due]) -> None:
        """Record frames whose triggers have decided their stamps, and let go of their credit."""
        for due in found:
            self._commit(due.instance, due.stream, due.frame, due.stamped)
            held = self._held.pop((due.instance.number, due.frame.stream, due.frame.seq), None)
            if held is not None:
                self.receiver.release([held])

    def _commit(self, instance: Instance, stream: LiveStream, frame: Frame, stamped: Stamped) -> None:
        episode = self.episode
        if episode is not None:
            if episode.started_ns == NOT_STARTED:
                episode.started_ns = int(frame.arrival_ns[0])
                self.sets.begin(episode.episode_id, episode.started_ns, episode.aligner.reference)
                self._store_calibration(episode)
            self._record(episode, instance, stream, frame, stamped)

    def _record(
        self, episode: OpenEpisode, instance: Instance, stream: LiveStream, frame: Frame, stamped: Stamped
    ) -> None:
        info = stream.info
        tally = episode.tallies[info.name]
        events = stream.tracker.take_events()
        if events:
            tally.note_clock(events)
            for event in events:
                self._event("clock", info.name, f"{event.kind.value}: {event.detail}")
        if info.is_personal:
            decision = _decide(self._consents[info.name], episode, info, frame, stamped)
            if self._is_held:
                decision = Decision(False, "paused", "paused; the press could not be written down")
            if not decision.is_allowed:
                self._withhold(episode, stream, frame, decision)
                return
        try:
            episode.writer.write(frame, stamped, instance.number)
        except WriteError as err:
            self._disk_trouble(str(err))
            return
        tally.add(frame, stamped)
        bound_ns = stamped.uncertainty.bound95_ns
        if not info.reference_of:
            episode.aligner.add(info.name, frame.seq, frame.count, stamped.capture_ns, bound_ns)
        self._show(episode, instance.number, info, frame, stamped)
        self.sets.offer(info, frame, stamped.capture_ns, self._clock.now_ns())

    def _show(
        self, episode: OpenEpisode, number: int, info: StreamInfo, frame: Frame, stamped: Stamped
    ) -> None:
        if self._is_held or not self.live.is_watched(info.name):
            return
        if _decide(self._live_consents[info.name], episode, info, frame, stamped).is_allowed:
            self.live.offer(number, frame)

    def _withhold(self, episode: OpenEpisode, stream: LiveStream, frame: Frame, decision: Decision) -> None:
        stream.account.drop(frame.count, Place.SYNCHRONIZER, f"consent: {decision.rule}")
        episode.tallies[stream.info.name].denials[decision.reason] += frame.count
        if not stream.info.reference_of:
            episode.aligner.withhold(stream.info.name)

    # -- what is due

    def _housekeeping(self, now_ns: int) -> None:
        self._welcome_when_ready()
        self._update_consent()
        self.live.step()
        self._collect_sealed()
        self._commit_all(self._triggers.due(now_ns))
        self._note_triggers()
        is_second = not self.is_virtual and now_ns >= self._next_base_ns
        if is_second:
            self._next_base_ns = now_ns + BASES_NS
            reading = read_bases()
            self._note_clocks(self._clocks.second(reading, self.instances.values()))
        elif not self.is_virtual:
            self._note_clocks(self._clocks.step())
        episode = self.episode
        if episode is None:
            return
        if is_second:
            episode.writer.write_base(reading)
            self._write_models(episode)
            if not episode.writer.has_room():
                self._disk_trouble(
                    f"less than {episode.writer.policy.min_free_bytes >> 20} MiB free on the spool's disk"
                )
                return
        # By the latest arrival, not by the wall: on a machine that lags, all streams lag and none is silent.
        # A frame that waits for its pulse has arrived for all that, so the others wait for it.
        self._write_rows(episode, episode.aligner.advance(self._triggers.oldest_arrival_ns(self._arrival_ns)))
        try:
            episode.writer.step(now_ns)
        except EpisodeError as err:
            self._disk_trouble(str(err))
            return
        self._split_when_due(episode)

    def _note_triggers(self) -> None:
        for event in self._triggers.take_events():
            if self.episode is not None and event.stream in self.episode.tallies:
                self.episode.tallies[event.stream].note_clock((event,))
            kind = event.kind.value
            self._event("clock", event.stream, f"{kind}: {event.detail}", {"kind": kind})

    def _note_clocks(self, events: Iterable[WatchEvent]) -> None:
        for event in events:
            self._event("clock", event.subject, event.detail)

    def _update_consent(self) -> None:
        now_utc_ns = self._clock.utc_ns()
        self._ledger = self._consent_store.poll(now_utc_ns)
        for consent in (*self._consents.values(), *self._live_consents.values()):
            consent.update(self._ledger, now_utc_ns, self._capture_now_utc_ns())

    def _admit(self, instance: Instance) -> None:
        """Prepare the consent decisions of an instance's streams, its triggers, and show it to viewers."""
        self._commit_all(self._triggers.admit(instance))
        now_utc_ns, capture_now_ns = self._clock.utc_ns(), self._capture_now_utc_ns()
        for stream in instance.streams.values():
            info = stream.info
            for purpose, decisions in ((Purpose.RECORD, self._consents), (Purpose.LIVE, self._live_consents)):
                decisions[info.name] = StreamConsent(self._ledger, info, purpose, now_utc_ns, capture_now_ns)
            self.live.declare(info)

    def _write_models(self, episode: OpenEpisode) -> None:
        now_ns = self.now_ns()
        for instance in self.instances.values():
            for name, stream in instance.streams.items():
                model = stream.tracker.model
                if model is not None:
                    episode.writer.write_model(name, model, now_ns, instance.number)

    def _write_rows(self, episode: OpenEpisode, rows: Iterable[SyncRow]) -> None:
        for row in rows:
            episode.writer.write_row(row)
            self.sets.row(row, self._clock.now_ns())

    def _split_when_due(self, episode: OpenEpisode) -> None:
        max_s, max_bytes = self.spec.max_s, self.spec.max_bytes
        is_long = max_s is not None and self.now_ns() - episode.started_ns >= max_s * SECOND_NS
        is_large = max_bytes is not None and episode.writer.bytes_stored() >= max_bytes
        if (is_long or is_large) and not self.is_drained:
            self.stop()
            self.start()

    # -- episodes

    def start(self) -> str:
        """Open an episode unless one is open; return its id."""
        if self.episode is not None:
            return self.episode.episode_id
        self._is_armed = True
        now_ns = self.now_ns() if self._arrival_ns or not self.is_virtual else NOT_STARTED
        timeline = self._episode_timeline()
        episode_id = new_ulid(self._clock.utc_ns())
        folder = self.spec.spool / "open" / episode_id
        writer = EpisodeWriter(folder, episode_id, timeline, WriterPolicy(flush_s=self.spec.flush_s))
        aligner = Aligner(self._reference(), self.spec.tolerance_ns)
        self.sets.begin(episode_id, now_ns, aligner.reference)
        self.episode = OpenEpisode(episode_id, folder, writer, timeline, now_ns, aligner)
        self.episode.limitations += self.spec.limitations
        if self.permit.despite:
            self.episode.limitations.append(f"recorded by the operator's word although {self.permit.despite}")
        if now_ns != NOT_STARTED:
            self._store_calibration(self.episode)
        self.checks.begin()
        self._clocks.begin()
        self._triggers.begin()
        for instance in sorted(self.instances.values(), key=self._place_in_rig):
            if not instance.has_ended:
                self._join(self.episode, instance)
        self._note_clocks(self._clocks.standing())
        for stream, problem in self._triggers.problems():
            self.episode.limitations.append(problem)
            self._event("clock", stream, problem)
        return episode_id

    def _place_in_rig(self, instance: Instance) -> int:
        device, devices = instance.declare.device, self.spec.devices
        return devices.index(device) if device in devices else len(devices)

    def _episode_timeline(self) -> Timeline:
        timeline = self.timeline
        if timeline is not None and timeline.is_virtual:
            return timeline
        return Timeline(self.spec.host_id, read_bases().utc_minus_host_ns)

    def _reference(self) -> str:
        if self.spec.reference:
            return self.spec.reference
        infos = [stream.info for instance in self.instances.values() for stream in instance.streams.values()]
        originals = [info for info in infos if not info.reference_of]
        for modality in REFERENCE_ORDER:
            for info in originals:
                if info.modality is modality:
                    return info.name
        periodic = [info for info in originals if 0 < info.rate_hz <= _FASTEST_REFERENCE_HZ]
        return max(periodic or originals, key=lambda info: info.rate_hz).name if originals else ""

    def _join(self, episode: OpenEpisode, instance: Instance) -> None:
        """Open the accounts of an instance in the episode, and note where they begin."""
        begins = {}
        for name, stream in instance.streams.items():
            episode.writer.declare(stream.info)
            if not stream.info.reference_of:
                episode.aligner.declare(stream.info)
            episode.tallies.setdefault(name, StreamTally(stream.info))
            account = stream.account.open_account()
            episode.accounts.append((name, instance.number, account))
            begins[name] = JournalStream(account.start_seq, pack_reported(stream.account.reported))
        declare = instance.declare
        episode.instances[instance.number] = JournalInstance(declare.device, declare.counters, begins)
        self._save_journal(episode)

    def _save_journal(self, episode: OpenEpisode) -> None:
        journal = Journal(
            rig=self.spec.rig,
            operator=self.spec.operator,
            task=self.spec.task,
            instruction=self.spec.instruction,
            reference=episode.aligner.reference,
            consent=str(self.spec.consent),
            instances={str(number): found for number, found in episode.instances.items()},
        )
        journal.save(episode.folder)

    def _store_calibration(self, episode: OpenEpisode) -> None:
        if self.spec.calibration is not None and self._calibration is not None:
            shutil.copyfile(self.spec.calibration, episode.folder / "calibration.yaml")
            episode.writer.write_calibration(self._calibration, episode.started_ns)

    def stop(self) -> str | None:
        """Close the open episode and hand it to the sealer; return its id."""
        self._commit_all(self._triggers.due(None))
        self._note_triggers()
        episode, self.episode = self.episode, None
        if episode is None:
            return None
        for instance in self.instances.values():
            if (
                not instance.has_ended
                and self._clock.now_ns() - instance.heard_ns > SILENT_NS
                and not self.is_virtual
            ):
                self._settle(instance)
                instance.has_ended = False  # it may only have been suspended
            for stream in instance.streams.values():
                stream.account.take_account()
        self._finish_clocks(episode)
        try:
            self._write_rows(episode, episode.aligner.finish())
            self._write_models(episode)
            episode.writer.close()
        except EpisodeError as err:
            episode.limitations.append(f"not everything could be written: {err}")
        if not any(account.produced for _, _, account in episode.accounts):
            shutil.rmtree(episode.folder)  # not a sample was produced: there is nothing to prove or to keep
            return None
        closing = Closing(
            spool=self.spec.spool,
            spec=self.spec,
            episode_id=episode.episode_id,
            folder=episode.folder,
            timeline=episode.timeline,
            reference=episode.aligner.reference,
            tallies=episode.tallies,
            accounts=tuple(episode.accounts),
            written=dict(episode.writer.written()),
            alignments=episode.aligner.results(),
            marks=tuple(episode.marks),
            limitations=tuple(episode.limitations),
            rejected=Counter(self.receiver.rejected),
            verdicts=self.checks.verdicts(),
            checks=self.checks.records(),
            clocks=self._clock_verdicts(),
            calibration_id=self._calibration.calibration_id if self._calibration else "",
            ledger=self._ledger,
            now_utc_ns=self._clock.utc_ns(),
            started_ns=episode.started_ns,
            ended_ns=self.now_ns(),
        )
        self._sealing.append((episode.episode_id, self._sealer.submit(seal_closing, closing)))
        return episode.episode_id

    def _clock_verdicts(self) -> tuple[Verdict, ...]:
        """Return what was found about the clocks since the episode began."""
        watched = () if self.is_virtual else self._clocks.verdicts()
        return (*watched, *self._triggers.verdicts(with_seconds=not self.is_virtual))

    def _finish_clocks(self, episode: OpenEpisode) -> None:
        for instance in self.instances.values():
            for name, stream in instance.streams.items():
                model = stream.tracker.model
                if model is not None and name in episode.tallies:
                    episode.tallies[name].skew_ppm = model.skew_ppm
                    episode.tallies[name].clock_method = "recorded" if stream.is_recorded else model.method
                if self._triggers.is_by_pulse(name) and name in episode.tallies:
                    episode.tallies[name].clock_method = BY_PULSES

    def discard(self) -> str | None:
        """Close the open episode and delete it; return its id."""
        self._commit_all(self._triggers.due(None))
        episode, self.episode = self.episode, None
        if episode is None:
            return None
        for instance in self.instances.values():
            for stream in instance.streams.values():
                stream.account.take_account()
        episode.writer.close()
        shutil.rmtree(episode.folder)
        return episode.episode_id

    def mark(self, text: str) -> bool:
        """Put a mark at now; False when nothing is being recorded."""
        if self.episode is None:
            return False
        self.episode.marks.append((self.now_ns(), text))
        self._event("mark", "", text)
        return True

    def pause(self, source: str) -> int:
        """Deny personal captures from now on; durable before it returns. Returns the UTC of the press.

        Raises:
            ConsentError: If the press could not be written down; captures are denied all the same, until
                ``resume`` or the end of this process.
        """
        self._is_held = True
        pause = self._consent_store.pause(self._clock.utc_ns(), source)
        self._is_held = False
        self._update_consent()
        self._event("pause", "", f"paused by {source}")
        return pause.from_ns

    def resume(self, source: str) -> int:
        """End every pause; return how many there were."""
        ended = self._consent_store.resume(self._clock.utc_ns(), source)
        self._is_held = False
        self._update_consent()
        self._event("resume", "", f"resumed by {source}")
        return len(ended)

    # -- calibration checks

    def take_check(self, message: CheckMessage) -> None:
        """Keep the checker's verdicts for the manifest of the episode that they judged; act as the rig says.

        A verdict that comes after its episode was closed is an event of the next one, and no part of its manifest.
        """
        if message.report is not None:
            self.checks.report = message.report
        is_open = self.episode is not None and self.episode.episode_id == message.episode
        for window in message.windows:
            if is_open:
                self.checks.add(window)
            self._note_window(window, "" if is_open else message.episode)
        is_new = self.checks.note(message.windows)
        failed = [window.verdict for window in message.windows if window.verdict.status is Status.FAILED]
        if not failed or self.permit.is_despite or self.spec.on_failed_check == "warn":
            return
        reason = "; ".join(f"{each.check} on {each.subject} failed: {each.reasons[0]}" for each in failed)
        if self.spec.on_failed_check == "stop":
            self._refuse(reason, message.episode)
        elif is_new and self.episode is not None:
            self._split_after(reason, message.episode, is_open)

    def _note_window(self, window: JudgedWindow, closed_episode: str) -> None:
        verdict = window.verdict
        reasons = "; ".join(verdict.reasons)
        late = f" (of episode {closed_episode}, closed before)" if closed_episode else ""
        fields = {
            "check": verdict.check,
            "status": verdict.status.value,
            "start_ns": str(window.start_ns),
            "end_ns": str(window.end_ns),
        }
        detail = f"{verdict.check}: {verdict.status.value}. {reasons}".strip() + late
        self._event("verdict", verdict.subject, detail, fields)

    def _split_after(self, reason: str, judged: str, is_open: bool) -> None:
        """Begin an episode anew because a check failed, unless another one had begun since."""
        if is_open:
            self.stop()
            self.start()
        assert self.episode is not None
        began = "began because" if is_open else "began before it was known that"
        sentence = f"{began} in episode {judged} calibration {reason}"
        self.episode.limitations.append(sentence)
        self._event("split", "", sentence, {"after": judged})

    def _refuse(self, reason: str, judged: str) -> None:
        """End the open episode and begin none under this calibration until the operator says so."""
        self.permit.refuse(f"in episode {judged} calibration {reason}", self._clock.utc_ns())
        self._is_armed = False
        if self.episode is not None:
            self.episode.limitations.append(f"ended because calibration {reason}")
            self.stop()

    def start_when_allowed(self, despite_calibration: bool = False) -> str:
        """Open an episode for the operator, see :meth:`Permit.ask`; return its id."""
        self.permit.ask(despite_calibration)
        return self.start()

    def _event(self, kind: str, stream: str, detail: str, fields: dict[str, str] | None = None) -> None:
        if self.episode is not None:
            event = EpisodeEvent(self.now_ns(), kind, stream, detail, fields or {})
            try:
                self.episode.writer.write_event(event)
            except WriteError as err:
                self._disk_trouble(str(err))

    def _disk_trouble(self, what: str) -> None:
        """Stop capture loudly; what was recorded is sealed, the queue keeps its room to drain."""
        if self.fault:
            return
        self.fault = f"capture stopped: {what}. Free space or choose another spool"
        self._is_armed = False
        if self.episode is not None:
            self.episode.limitations.append(f"ended early: {what}")
            self.stop()

    # -- the end

    @property
    def is_drained(self) -> bool:
        """Whether every driver has said its last word."""
        return all(instance.has_ended for instance in self.instances.values())

    def close(self) -> None:
        """Settle what is silent, seal what is open, and wait for the seals."""
        for instance in self.instances.values():
            if not instance.has_ended:
                self._settle(instance)
        self.stop()
        self._clocks.close()
        self._sealer.shutdown(wait=True)
        self._collect_sealed()

    def _collect_sealed(self) -> None:
        still = []
        for episode_id, future in self._sealing:
            if not future.done():
                still.append((episode_id, future))
                continue
            error = future.exception()
            if error is None:
                self.sealed.append(Sealed(episode_id, future.result()))
            elif isinstance(error, (EpisodeError, OSError)):
                self.sealed.append(Sealed(episode_id, None, str(error)))
                self.fault = self.fault or f"episode {episode_id} could not be sealed: {error}"
            else:
                raise error
        self._sealing = still


def _decide(
    consent: StreamConsent, episode: OpenEpisode, info: StreamInfo, frame: Frame, stamped: Stamped
) -> Decision:
    """Return the decision over the whole span of a frame's samples, widened by their uncertainty."""
    first, last = int(stamped.capture_ns[0]), int(stamped.capture_ns[-1])
    if len(stamped.capture_ns) == 1 and frame.count > 1 and info.rate_hz:
        last += int((frame.count - 1) * SECOND_NS / info.rate_hz)
    half_width = (last - first) // 2 + int(stamped.uncertainty.bound95_ns)
    middle_utc_ns = (first + last) // 2 + episode.timeline.utc_minus_host_ns
    return consent.allows(middle_utc_ns, half_width)


def _load_calibration(path: Path | None) -> RigCalibration | None:
    if path is None:
        return None
    try:
        return RigCalibration.load(path)
    except CalibrationError as err:
        raise CalibrationError(f"calibration {path}: {err}") from err
