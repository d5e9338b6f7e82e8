"""Everything that watches clocks beside the streams: the host's own, PTP, remote nodes. One object to poll."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from sensorium.drivers.links.udp import resolve
from sensorium.errors import ClockError, DeviceError
from sensorium.sync.clocks.chrony import ChronyMonitor
from sensorium.sync.clocks.claims import Reference, utc_reference
from sensorium.sync.clocks.host_base import SLEW_EVENT_PPM, HostBase
from sensorium.sync.clocks.phc import PhcClock
from sensorium.sync.clocks.probe import ProbeClient, load_key
from sensorium.sync.clocks.ptp import PtpMonitor, PtpPolicy, PtpStatus, PtpTracker, claimed_model
from sensorium.sync.clocks.ptp_management import PtpClient
from sensorium.sync.clocks.ptp_story import LocalReading
from sensorium.sync.clocks.remote import RemoteClock
from sensorium.sync.clocks.watch_settings import NodeSettings, PtpSettings, WatchSettings
from sensorium.timebase import SECOND_NS, BaseReading, Clock
from sensorium.verdict import Status, Verdict

RETRY_NS = 10 * SECOND_NS
NO_UTC = "this host's own UTC is vouched for by nobody; name ptp or chrony under clocks: in the rig file"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """What happened to a clock; ``subject`` is the host, ``ptp`` or a node's name."""

    subject: str
    detail: str


class ClockWatch:
    """Polls all clocks that are no stream. :meth:`step` never waits.

    Attributes:
        nodes: Those whose name could be resolved; the others are tried again every 10 s.
    """

    def __init__(self, host_id: str, settings: WatchSettings, clock: Clock) -> None:
        """Open what ``settings`` name.

        Raises:
            ConfigError: If a key cannot be used.
            ClockError: If the PTP hardware clock cannot be read.
        """
        self.base = HostBase()
        self.ptp_status: PtpStatus | None = None
        self.nodes: dict[str, RemoteClock] = {}
        self._host_id = host_id
        self._clock = clock
        self._settings = settings
        self._keys = {node.name: load_key(node.key) for node in settings.nodes}
        self._absent: dict[str, str] = {node.name: "its name is being looked up" for node in settings.nodes}
        self._lookups: dict[str, Future[str]] = {}
        # To look a name up can take as long as the name server likes; recording does not wait for it.
        self._resolver = ThreadPoolExecutor(1, thread_name_prefix="resolver")
        self._retry_ns = clock.now_ns()
        self._phc: PhcClock | None = None
        if settings.ptp is not None and settings.ptp.phc is not None:
            self._phc = PhcClock(settings.ptp.phc, clock)
        self._monitor = None if settings.ptp is None else _monitor(host_id, settings.ptp, clock, self._phc)
        self._chrony: ChronyMonitor | None = None
        self._chrony_status: Status | None = None
        if settings.chrony is not None:
            self._chrony = ChronyMonitor(host_id, clock, settings.chrony.limit_us * 1e3)
        self._find_nodes()

    def begin(self) -> None:
        """Judge the host's own clocks from here on: a new episode has begun."""
        self.base = HostBase()

    def _find_nodes(self) -> None:
        if not self._absent:
            return
        now_ns = self._clock.now_ns()
        is_due = now_ns >= self._retry_ns
        if is_due:
            self._retry_ns = now_ns + RETRY_NS
        for node in self._settings.nodes:
            lookup = self._lookups.get(node.name)
            if node.name in self._absent and lookup is None and is_due:
                self._lookups[node.name] = self._resolver.submit(resolve, node.host)
            elif lookup is not None and lookup.done():
                del self._lookups[node.name]
                self._open(node, lookup)

    def _open(self, node: NodeSettings, lookup: "Future[str]") -> None:
        try:
            client = ProbeClient(lookup.result(), node.port, self._keys[node.name], self._clock)
        except DeviceError as err:
            self._absent[node.name] = str(err)
            return
        del self._absent[node.name]
        self.nodes[node.name] = RemoteClock(node.name, client, self._clock, node.limit_us * 1e3)

    def step(self, reading: BaseReading | None = None) -> tuple[WatchEvent, ...]:
        """Do what is due and return what happened.

        Args:
            reading: Of the host's clocks, when one was taken (each second).
        """
        events: list[WatchEvent] = []
        if reading is not None:
            for host in self.base.update(reading):
                events.append(WatchEvent(self._host_id, f"{host.kind.value}: {host.detail}"))
        if self._monitor is not None:
            self._monitor.tracker.utc_error_ns = self._vouched_utc_ns()
            self.ptp_status = self._monitor.step() or self.ptp_status
            for ptp in self._monitor.tracker.take_events():
                events.append(WatchEvent("ptp", f"{ptp.kind.value}: {ptp.detail}"))
        if self._chrony is not None and self._chrony.step():
            judged = self._chrony.verdict
            if judged.status is not self._chrony_status:
                self._chrony_status = judged.status
                events.append(
                    WatchEvent("chrony", f"{judged.status.value}. {'; '.join(judged.reasons)}".strip())
                )
        self._find_nodes()
        for name, node in self.nodes.items():
            node.step()
            for change in node.take_events():
                events.append(WatchEvent(name, f"{change.kind.value}: {change.detail}"))
        return tuple(events)

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return one verdict per clock, as of now."""
        found = [self.base.verdict(self._host_id)]
        if self.ptp_status is not None:
            found.append(self.ptp_status.verdict)
        elif self._monitor is not None:
            found.append(self._monitor.tracker.status(0).verdict)
        if self._chrony is not None:
            found.append(self._chrony.verdict)
        found += [node.verdict() for node in self.nodes.values()]
        for name, reason in self._absent.items():
            found.append(Verdict("remote_clock", name, Status.INSUFFICIENT, (), (reason,)))
        return tuple(found)

    def ptp_reference(self) -> Reference | None:
        """Return PTP time on the host clock; UTC where PTP is not watched; None while neither is known."""
        status = self.ptp_status
        if self._monitor is None:
            return self._utc_reference()
        if status is None or status.uncertainty is None:
            return None
        if self._phc is not None:
            try:
                phc = self._phc.read()
            except ClockError:
                return None  # the hardware clock was removed; the monitor's verdict says what PTP is worth
            model = claimed_model(status, phc.phc_ns, phc.host_ns)
            error_ns = phc.bracket_ns / 2
        else:
            local = self.base.realtime()
            if local is None:
                return None
            rate = 1 / (1 + local.rate_ppm * 1e-6)
            ptp_ns = local.ref_other_ns + status.ptp_minus_told_ns
            model = claimed_model(status, ptp_ns, local.ref_host_ns, rate)
            # A slew that begins between two readings is an event at the next ones; how late we come to ask says
            # nothing about it.
            age_ns = max(0, self._clock.now_ns() - local.ref_host_ns)
            error_ns = local.error_ns + age_ns * 2 * SLEW_EVENT_PPM * 1e-6
        on_wire = status.on_wire or model.uncertainty
        known = replace(on_wire, floor_ns=on_wire.floor_ns + error_ns)
        reading = status.reading
        return Reference(
            "ptp",
            replace(model, uncertainty=known),
            doubt=status.doubt,
            may_be_followed=not status.doubt,
            utc_offset_s=None if reading is None else reading.announced_utc_offset_s,
        )

    def _vouched_utc_ns(self) -> float | None:
        """Return the bound of the host's own UTC where chrony vouches for it."""
        if self._chrony is None or self._chrony.verdict.status is not Status.OK:
            return None
        return next(q.value for q in self._chrony.verdict.quantities if q.name == "bound")

    def _utc_reference(self) -> Reference | None:
        local = self.base.realtime()
        if local is None:
            return None
        offset_ns = local.ref_other_ns - local.ref_host_ns
        bound = self._vouched_utc_ns()
        if bound is not None:
            return utc_reference(offset_ns, local.ref_host_ns, bound + local.error_ns)
        return utc_reference(offset_ns, local.ref_host_ns, doubt=NO_UTC)

    def node_reference(self, name: str) -> Reference | None:
        """Return a node's clock on the host clock; None while it is not known."""
        node = self.nodes.get(name)
        model = node.model() if node is not None else None
        return None if model is None else Reference(f"node {name}", replace(model, method=f"node {name}"))

    def close(self) -> None:
        """Release all sockets."""
        self._resolver.shutdown(wait=False, cancel_futures=True)
        if self._phc is not None:
            self._phc.close()
        if self._monitor is not None:
            self._monitor.close()
        if self._chrony is not None:
            self._chrony.close()
        for node in self.nodes.values():
            node.close()


def _monitor(host_id: str, settings: PtpSettings, clock: Clock, phc: PhcClock | None) -> PtpMonitor:
    policy = PtpPolicy(
        is_free_running=settings.free_running,
        is_master=settings.master,
        offset_limit_ns=round(settings.offset_limit_us * 1e3),
        holdover_per_ns=settings.holdover_ppm * 1e-6,
        is_software=phc is None,
    )
    client = PtpClient(clock, settings.socket, settings.domain, settings.transport_specific)

    def hardware() -> LocalReading | None:
        if phc is None:
            return None
        try:
            read = phc.read()
        except ClockError:
            return None  # it was removed; what ptp4l says still counts
        return LocalReading(read.host_ns, read.phc_ns, read.bracket_ns)

    return PtpMonitor(client, PtpTracker(host_id, policy), clock, hardware)
