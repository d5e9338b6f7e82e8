"""The recorder: takes frames from the bus and puts them into files. Nothing here waits for anybody.

A frame's way: bus -> account (is anything missing before it?) -> stamp (by the clock map in force) -> consent
(may it be stored?) -> writer. Credit for its bytes returns to the driver once they are on disk. All that thinks
(clocks, alignment, quality, the seal) reads notes of it in another process (`sensorium.sync.thinking`).
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from sensorium.drivers.bus.counters import Counts, read_counters
from sensorium.drivers.bus.credits import Held
from sensorium.drivers.bus.live import LivePublisher
from sensorium.drivers.bus.receiver import BusReceiver
from sensorium.drivers.bus.wire import Control, Declare, End, Heartbeat, Inbound, Lost
from sensorium.drivers.frame import Frame, Place
from sensorium.errors import EpisodeError, WireError
from sensorium.sync.clocks.model import Stamped
from sensorium.sync.consent.store import DEFAULT_FOLDER, ConsentStore
from sensorium.sync.episode.mcap_records import WriteError
from sensorium.sync.recording.agenda import Agenda
from sensorium.sync.recording.briefing import Briefing
from sensorium.sync.recording.check_book import CheckMessage
from sensorium.sync.recording.check_policy import CheckPolicy
from sensorium.sync.recording.consent_watch import ConsentWatch
from sensorium.sync.recording.consents import Now, SessionConsent, moment
from sensorium.sync.recording.disk import RecordingDisk
from sensorium.sync.recording.episodes import Episodes
from sensorium.sync.recording.loss_runs import LossRuns
from sensorium.sync.recording.notes import ThinkerLink, pack_base, pack_frame
from sensorium.sync.recording.open_episode import NOT_STARTED, REPLACED, OpenEpisode
from sensorium.sync.recording.permit import Permit
from sensorium.sync.recording.roster import Roster
from sensorium.sync.recording.spec import SyncSpec
from sensorium.sync.recording.splitting import Splitting
from sensorium.sync.recording.streams import Instance, LiveStream
from sensorium.sync.recording.triggers import Due, SessionTriggers
from sensorium.timebase import SECOND_NS, Clock, read_bases

BATCH = 256
HOUSEKEEPING_NS = SECOND_NS // 50
BASES_NS = SECOND_NS


class Synchronizer:
    """One recording session. Call :meth:`step` in a loop; commands come from the service around it."""

    def __init__(
        self,
        spec: SyncSpec,
        receiver: BusReceiver,
        live: LivePublisher,
        link: ThinkerLink,
        consent: ConsentStore,
        clock: Clock,
    ) -> None:
        self.spec = spec
        self.receiver = receiver
        self.live = live
        self.link = link
        self.roster = Roster(spec.devices, spec.run_dir, receiver, clock, spec.bus_secret)
        usual = spec.spool / DEFAULT_FOLDER
        beside = ConsentStore(usual, clock) if spec.consent.resolve() != usual.resolve() else None
        self.consent = SessionConsent(consent, clock, beside)
        self._watch = ConsentWatch(self.consent, receiver, spec.pause)
        self.fault = ""
        """Why capture stopped by itself (a full disk); "" while all is well."""
        self.is_ending = False
        """The drivers were told to end: nobody has to wait any more."""
        self.refused_priority = ""
        """What this process could not get of the system, in words."""
        self._clock = clock
        self.disk = RecordingDisk(spec)
        self._triggers = SessionTriggers(spec.triggers)
        self._episodes = Episodes(spec, self.roster, self._triggers, link, clock)
        self._splitting = Splitting(spec.max_s, spec.max_bytes, self._episodes)
        self.briefing = Briefing(link, self.roster, self._episodes, clock.now_ns())
        permit = Permit(spec, self._episodes.calibration_id)
        self.policy = CheckPolicy(spec.on_failed_check, permit, self, spec.checked_at_start)
        self._is_armed = spec.start == "immediately" and permit.refusal is None
        self._is_virtual = False
        self._now_ns = clock.now_ns()
        self._arrival_ns = 0
        self._agenda = Agenda(
            HOUSEKEEPING_NS,
            self._hear_people,
            self._hear_thinker,
            self._look_after_triggers,
            self._look_after_episode,
            self._tell_thinker,
        )
        self._next_base_ns = 0
        self._free: list[Held] = []
        self._losses = LossRuns()
        self._must_be_seen = False

    @property
    def episode(self) -> OpenEpisode | None:
        """The episode that is being written."""
        return self._episodes.open

    # -- time

    @property
    def is_virtual(self) -> bool:
        """Whether this is a replay, whose clock is that of its source."""
        return self._is_virtual

    def now_ns(self) -> int:
        """Return now on the streams' host clock: of a replay, the latest arrival."""
        return self._arrival_ns if self._is_virtual else self._clock.now_ns()

    def now(self) -> Now:
        return moment(self._clock, self.roster.timeline, self._arrival_ns)

    # -- the loop

    def step(self) -> int:
        """Take in one batch and do what is due; return how many messages there were."""
        handled = 0
        self._now_ns = self._clock.now_ns()
        for inbound in self.receiver.receive(BATCH):
            handled += 1
            self._take(inbound)
        self._agenda.step(self._now_ns, is_busy=handled > 0)
        self._return_credit()
        return handled

    def _take(self, inbound: Inbound) -> None:
        message, held = inbound.message, inbound.held
        if not isinstance(message, tuple):
            self._take_control(inbound.identity, message)
            return
        number, frame = message
        instance = self.roster.instances.get(number)
        if instance is None:
            self.receiver.reject("frame of an undeclared instance")
        else:
            instance.heard_ns = self._now_ns
            if self._take_frame(instance, frame, held):
                return
        self._let_go(held)

    def _let_go(self, held: Held | None) -> None:
        if held is not None:
            self._free.append(held)

    def _take_control(self, identity: bytes, message: Control) -> None:
        if isinstance(message, Declare):
            self._declare(identity, message)
            return
        instance = self.roster.instances.get(message.instance)
        if instance is None:
            self.receiver.reject(f"{message.kind} of an undeclared instance")
            return
        instance.heard_ns = self._now_ns
        if isinstance(message, Lost):
            stream = instance.streams.get(message.stream)
            if stream is not None:
                stream.account.report_lost(message.seq, message.count, message.place, message.reason)
                self._losses.add(message, self._now_ns)
        elif isinstance(message, End):
            self._end(instance, message)
        elif not isinstance(message, Heartbeat):
            self.receiver.reject(f"unexpected {message.kind}")

    def _note_losses(self, now_ns: int | None) -> None:
        for run in self._losses.due(now_ns):
            self.event("loss", run.stream, run.sentence, run.fields)

    def _end(self, instance: Instance, last: End) -> None:
        for name, next_seq in last.next_seq.items():
            if name in instance.streams:
                instance.streams[name].account.reach(next_seq)
        self.roster.end(instance, last.error)
        self.briefing.end(instance)
        if last.error:
            self.event("driver", instance.declare.device, f"ended with an error: {last.error}")

    # -- drivers

    def _declare(self, identity: bytes, declare: Declare) -> None:
        declare = self._triggers.describe(declare)
        instance = self.roster.declare(identity, declare)
        if instance is not None:
            self._admit(instance)
            if self.episode is not None and self.episode.is_changed_by(declare.streams):
                self.stop()  # a stream is one thing throughout an episode
                self.start()
            elif self.episode is not None:
                self._join(instance)
        self._welcome_when_ready()

    def _join(self, instance: Instance) -> None:
        try:
            self._episodes.join(instance)
        except WriteError as err:
            self._disk_trouble(str(err))

    def _admit(self, instance: Instance) -> None:
        """Prepare what is decided of an instance's streams, its triggers, and tell who watches or thinks."""
        self._is_virtual = instance.declare.timeline.is_virtual
        self._commit_all(self._triggers.admit(instance))
        now = self.now()
        for stream in instance.streams.values():
            self.consent.admit(stream.info, now)
            self.live.declare(stream.info)
        self.briefing.declare(instance)

    def _welcome_when_ready(self) -> None:
        if not self.roster.is_complete():
            return
        self.roster.welcome()  # sent with the next credits, so nothing comes before the episode is open
        if not self.roster.has_started:
            self.roster.has_started = True
            if self._is_armed:
                self.start()

    def exclude(self, device: str) -> None:
        """Do not wait for a device that failed to open."""
        self.roster.exclude(device)
        self._welcome_when_ready()

    def adopt(self, declares: Iterable[Declare], read: Callable[[Path], Counts] = read_counters) -> None:
        """Know the drivers that a recorder before this one knew, at the boundary that it left."""
        for instance in self.roster.adopt(declares, read):
            self._admit(instance)
        if self.roster.instances:
            self._welcome_when_ready()

    # -- frames

    def _take_frame(self, instance: Instance, frame: Frame, held: Held | None) -> bool:
        """Take one frame; False if it goes no further, so that its credit is due."""
        stream = instance.streams.get(frame.stream)
        if stream is None:
            self.receiver.reject(f"frame of undeclared stream {frame.stream}")
            return False
        try:
            stream.check(frame, None if self._is_virtual else self._now_ns)
        except WireError as err:
            self.receiver.reject(str(err))
            return False
        if not stream.account.arrive(frame.seq, frame.count):
            return False
        stamped = stream.stamp(frame)
        arrival_ns = int(frame.arrival_ns[-1])
        if arrival_ns > self._arrival_ns:
            self._arrival_ns = arrival_ns
        if self._triggers.concerns(frame):
            # Its credit returns when it is recorded: it may have to wait for its pulse.
            due = Due(instance, stream, frame, stamped, held)
            self._commit_all(self._triggers.take(due, self._now_ns))
            self._commit_all(self._triggers.due(self._now_ns))
            return True
        return self._commit(instance, stream, frame, stamped, held)

    def _commit_all(self, found: Iterable[Due]) -> None:
        """Record frames whose triggers have decided their stamps, and let go of their credit."""
        for due in found:
            if not self._commit(due.instance, due.stream, due.frame, due.stamped, due.held):
                self._let_go(due.held)

    def _commit(
        self, instance: Instance, stream: LiveStream, frame: Frame, stamped: Stamped, held: Held | None
    ) -> bool:
        """Record a frame if an episode is open, and tell the thinker; False if it was not stored."""
        episode = self.episode
        is_stored = False
        if episode is not None:
            if episode.started_ns == NOT_STARTED:
                self._episodes.begin_virtual(episode, int(frame.arrival_ns[0]))
            is_stored = self._record(episode, instance, stream, frame, stamped, held)
        if self._is_virtual and frame.recorded is None:
            self._must_be_seen = True
        size, taken_ns = stream.driver_bytes(frame.payload, frame.count), self._clock.now_ns()
        whose = instance.number, stream.index
        note = pack_frame(*whose, frame, stamped, is_stored=is_stored, driver_bytes=size, taken_ns=taken_ns)
        self.link.note(note)
        return is_stored

    def _record(
        self,
        episode: OpenEpisode,
        instance: Instance,
        stream: LiveStream,
        frame: Frame,
        stamped: Stamped,
        held: Held | None,
    ) -> bool:
        info = stream.info
        if not episode.takes(info):
            stream.account.drop(frame.count, Place.SYNCHRONIZER, REPLACED)
            self.receiver.reject(f"frame of {info.name} as it was declared before")
            return False
        if info.is_personal:
            decision = self.consent.to_record(info, frame, stamped)
            if not decision.is_allowed:
                stream.account.drop(frame.count, Place.SYNCHRONIZER, f"consent: {decision.rule}")
                episode.streams[info.name].denials[decision.reason] += frame.count
                return False
        try:
            episode.writer.write(frame, stamped, instance.number, held)
        except WriteError as err:
            self._disk_trouble(str(err))
            return False
        episode.streams[info.name].samples += frame.count
        if self.live.is_watched(info.name) and self.consent.to_show(info, frame, stamped):
            self.live.offer(instance.number, frame)
        return True

    def _return_credit(self) -> None:
        """Give back the credit of what is on disk or gone for good, unless a replay must not run ahead."""
        self._free += self._episodes.settled()
        if self._free and not self._is_too_far_ahead():
            self.receiver.release(self._free)
            self._free = []
        self.receiver.step(self._now_ns)

    def _is_too_far_ahead(self) -> bool:
        """Return whether a replay has to wait for the clock maps that stamp it."""
        is_waited_for = self._must_be_seen and not self.is_ending
        return is_waited_for and self.briefing.is_behind(self._arrival_ns, self._now_ns)

    def _hear_people(self, _now_ns: int) -> None:
        self._welcome_when_ready()
        self._watch.step()
        self._follow_consent()
        self.live.step()

    def _follow_consent(self, by: str = "a switch, or in the consent log") -> None:
        """Cut the episode where a pause begins or ends, or what it holds is withdrawn."""
        self.consent.update(self.now())
        change = self._watch.change(by, self.episode)
        if change is None:
            return
        self.event(change.kind, "", change.said)
        if self.episode is not None and self.episode.has_produced and self.episode.has_personal:
            self.stop()
            self.start()
            self.event(change.kind, "", change.said)

    def _hear_thinker(self, now_ns: int) -> None:
        self.briefing.hear(now_ns)
        self.fault = self.fault or self.briefing.fault
        self._collect_finished()

    def _look_after_triggers(self, now_ns: int) -> None:
        self._commit_all(self._triggers.due(now_ns))
        self._note_triggers()
        self._note_losses(now_ns)

    def _tell_thinker(self, now_ns: int) -> None:
        self.link.flush(now_ns, self._triggers.oldest_arrival_ns(self._arrival_ns))

    def _look_after_episode(self, now_ns: int) -> None:
        is_second = not self._is_virtual and now_ns >= self._next_base_ns
        if is_second:
            self._next_base_ns = now_ns + BASES_NS
            reading = read_bases()
            self.link.note(pack_base(reading))
        episode = self.episode
        if episode is None:
            return
        try:
            if is_second:
                episode.writer.write_base(reading)
                if trouble := self.disk.trouble(episode.writer):
                    self._disk_trouble(trouble)
                    return
            episode.step(now_ns)
        except EpisodeError as err:
            self._disk_trouble(str(err))
            return
        if not self.roster.is_drained and self._splitting.is_due(episode, self.now_ns()):
            self.stop()
            self.start()

    def _note_triggers(self) -> None:
        for event in self._triggers.take_events():
            kind = event.kind.value
            if self.episode is not None and event.stream in self.episode.streams:
                self.episode.streams[event.stream].clock_events[kind] += 1
            self.event("clock", event.stream, f"{kind}: {event.detail}", {"kind": kind})

    def warnings(self) -> list[str]:
        """Return what the operator should know before it matters."""
        return [*filter(None, (self.receiver.shortfall(), self.refused_priority)), *self.roster.refusals]

    # -- episodes

    def disarm(self) -> None:
        """Open no further episode by itself."""
        self._is_armed = False

    def start(self) -> str:
        """Open an episode unless one is open; return its id."""
        if self.episode is not None:
            return self.episode.episode_id
        self._is_armed = True
        now_ns = self.now_ns() if self._arrival_ns or not self._is_virtual else NOT_STARTED
        despite = self.policy.permit.despite
        known = [f"recorded by the operator's word although {despite}"] if despite else []
        self.policy.book.begin()
        episode = self._episodes.begin(now_ns, [*known, *self.warnings()])
        self.consent.begin(episode.timeline.utc_minus_host_ns, self.now())
        self.policy.begun()
        for stream, problem in self._triggers.problems():
            episode.limitations.append(problem)
            self.event("clock", stream, problem)
        return episode.episode_id

    def start_when_allowed(self, despite_calibration: bool = False) -> str:
        """Open an episode for the operator, see :meth:`Permit.ask`; return its id."""
        self.policy.permit.ask(despite_calibration)
        return self.start()

    def stop(self) -> str | None:
        """Close the open episode, whoever thinks seals it; return its id."""
        episode = self._take_episode()
        if episode is None:
            return None
        if not episode.has_produced:  # there is nothing to prove or to keep
            self._episodes.remove(episode)
            return None
        self._episodes.close(episode, self.now_ns(), self.receiver.rejected, self.policy.book)
        return episode.episode_id

    def discard(self) -> str | None:
        """Close the open episode and delete it; return its id."""
        episode = self._take_episode()
        if episode is None:
            return None
        self._episodes.remove(episode)
        return episode.episode_id

    def _take_episode(self) -> OpenEpisode | None:
        """Let what waits for pulses into the open episode, and take it out of the frames' way."""
        self._commit_all(self._triggers.due(None))
        self._note_triggers()
        self._note_losses(None)
        return self._episodes.take(is_virtual=self._is_virtual)

    def _collect_finished(self) -> None:
        held, problem = self._episodes.collect()
        self._free += held
        self.fault = self.fault or problem

    def mark(self, text: str) -> bool:
        """Put a mark at now; False when nothing is being recorded."""
        if self.episode is None:
            return False
        self.episode.marks.append((self.now_ns(), text))
        self.event("mark", "", text)
        return True

    def pause(self, source: str, host_ns: int | None = None) -> int:
        """Deny personal captures from the press on, see :meth:`SessionConsent.pause`; return its UTC."""
        try:
            return self.consent.pause(source, host_ns)
        finally:
            self._follow_consent(source)

    def resume(self, source: str) -> int:
        """End every pause; return how many there were."""
        n_ended = self.consent.resume(source)
        self._follow_consent(source)
        return n_ended

    def take_check(self, message: CheckMessage) -> None:
        """Take what the checker says, see :meth:`CheckPolicy.take`."""
        self.policy.take(message, self._clock.utc_ns())

    def event(self, kind: str, stream: str, detail: str, fields: dict[str, str] | None = None) -> None:
        """Write into the open episode, if there is one, that something happened now."""
        if self.episode is not None:
            try:
                self.episode.event(self.now_ns(), kind, stream, detail, fields)
            except WriteError as err:
                self._disk_trouble(str(err))

    def _disk_trouble(self, what: str) -> None:
        """Stop capture loudly; what was recorded is sealed, the queue keeps its room to drain."""
        if self.fault:
            return
        self.fault = f"capture stopped: {what}. Free space or choose another spool"
        self.disarm()
        if self.episode is not None:
            self.episode.limitations.append(f"ended early: {what}")
            self.stop()

    def close(self) -> None:
        """Settle what is silent, close what is open, and wait for its files."""
        for instance in self.roster.in_rig_order():
            self.roster.settle(instance)
        self.stop()
        self._episodes.wait()
        self._collect_finished()
        self.link.flush(self._clock.now_ns(), self._arrival_ns)
