"""What all simulated devices share: the common start, sample trains on a device clock, delivery, faults."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat

from sensorium.calibration.geometry import Array, rotation_from_rpy, transform
from sensorium.drivers.driver import Driver, DriverConfig, DriverContext
from sensorium.drivers.frame import Column, Encoding, Frame, Latency, Loss, Modality, StreamInfo
from sensorium.errors import ConfigError, DeviceError, EndOfStreamError
from sensorium.simulators.ahead import FramesAhead
from sensorium.simulators.common_start import agree_on_start
from sensorium.simulators.device_clock import (
    ClockConfig,
    LatencyConfig,
    LatencyPath,
    SimulatedClock,
    Stamps,
    simulated_clock,
    stream_rng,
)
from sensorium.simulators.faults import DropPlan, Fault, Faults, damaged
from sensorium.simulators.pace import PaceWriter
from sensorium.simulators.rig import MOUNTS, SPARE_MOUNTS
from sensorium.simulators.truth import FOLDER, SUFFIX, TruthWriter
from sensorium.simulators.world import MotionName, World
from sensorium.timebase import SECOND_NS, Timeline, read_bases

_PLACES = MOUNTS | SPARE_MOUNTS


class Bump(BaseModel):
    """From ``at_s`` on the sensor sits elsewhere: turned and shifted in its own axes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at_s: float
    rotation_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    translation_m: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def T_before_after(self) -> Array:
        return transform(rotation_from_rpy(*np.radians(self.rotation_deg)), self.translation_m)


class SimulatedConfig(DriverConfig):
    """Options of every simulated device.

    Attributes:
        seed: Of the world, the device's clock and its noise. Devices of one rig share it.
        start_ns: Host time at which world time is 0; devices of one rig share it. None = when opened.
        starts_with: Devices of the rig to wait for instead: the world begins for all of them together, a second
            after the last one was opened.
        utc_minus_host_ns: For accelerated runs: the UTC of the simulated host clock. None = the real one's.
        speed: Simulated seconds per real second. Other than 1, stamps are on a virtual host clock that passes
            ``start_ns`` when the real one does; a device that cannot keep up runs late and skips nothing.
        seconds: World time at which the stream ends.
        motion: ``walk``; ``board``: the rig stops here and there before the chessboard; ``still``; ``tilts``: it
            is held still in poses tilted to all sides. Devices share it.
        mount: Name in ``rig.MOUNTS`` or ``SPARE_MOUNTS``; None = the device's own name.
        drop_probability: Chance of each sample to be lost in the device.
    """

    seed: NonNegativeInt = 1
    start_ns: NonNegativeInt | None = None
    starts_with: tuple[str, ...] = ()
    utc_minus_host_ns: int | None = None
    speed: PositiveFloat = 1.0
    seconds: PositiveFloat | None = None
    motion: MotionName = "walk"
    mount: str | None = None
    bump: Bump | None = None
    clock: ClockConfig = ClockConfig()
    latency: LatencyConfig = LatencyConfig()
    faults: tuple[Fault, ...] = ()
    drop_probability: float = Field(default=0.0, ge=0.0, lt=1.0)


SimConfigT = TypeVar("SimConfigT", bound=SimulatedConfig)


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """(n,) consecutive samples that the device produced, lost ones (``kept`` False) included.

    Attributes:
        index: Number on the device's sampling grid since the common start.
        seq: Sequence numbers, in samples; equal steps.
        world_s: True capture time.
    """

    index: Stamps
    seq: Stamps
    world_s: NDArray[np.float64]
    capture_ns: Stamps
    ticks: Stamps
    arrival_ns: Stamps
    kept: NDArray[np.bool_]

    def runs(self, longest: int) -> list[slice]:
        """Return slices of samples without a loss inside, of ``longest`` at most, cut at its multiples."""
        breaks = {0, len(self.seq), *range(0, len(self.seq), longest)}
        breaks.update(int(edge) + 1 for edge in np.flatnonzero(np.diff(self.kept.astype(np.int8))))
        breaks.update(int(edge) + 1 for edge in np.flatnonzero(np.diff(self.index) != 1))
        edges = sorted(breaks)
        return [slice(a, b) for a, b in pairwise(edges) if self.kept[a]]


class SampleTrain:
    """One stream's samples: when they are taken, how they are stamped, when they arrive, which are lost."""

    def __init__(
        self,
        driver: "SimulatedDriver[Any]",
        stream: str,
        rate_hz: float,
        latency_min_ns: int,
        *,
        sampling: SimulatedClock | None = None,
        phase_s: float | None = None,
        samples_each: int = 1,
        align: int = 1,
        drops: bool = True,
        after_s: float = 0.0,
        jitter_s: float = 0.0,
    ) -> None:
        """Args:
        sampling: The clock that triggers the samples; None = the device's own, which also stamps them.
        phase_s: First grid instant on that clock; None = drawn from the seed.
        samples_each: Samples per item of the train (an audio block counts 480).
        align: Begin at a multiple of this many items (a LiDAR revolution).
        after_s: From the sampling clock's instant to the capture (a shutter's delay, half the exposure).
        jitter_s: Half width of its uniform jitter.
        """
        config = driver.config
        self.clock = driver.device_clock
        if phase_s is None:
            phase_s = float(stream_rng(config.seed, stream, "phase").uniform(0, 1 / rate_hz))
        self.phase_s = phase_s
        self._sampling = sampling or self.clock
        self._after_s, self._jitter_s = after_s, jitter_s
        self._shutter_rng = stream_rng(config.seed, stream, "shutter")
        self._rate_hz = rate_hz
        self._each = samples_each
        self._start_ns = driver.start_ns
        self._limit_s = driver.limit_s
        self._faults = driver.faults
        self._path = LatencyPath(
            config.latency,
            latency_min_ns,
            stream_rng(config.seed, stream, "latency"),
            driver.start_ns,
            driver.faults.spans("stall"),
        )
        probability = config.drop_probability if drops else 0.0
        plan = driver.faults if drops else Faults()
        self._drops = DropPlan(plan, probability, stream_rng(config.seed, stream, "drops"))
        self._ignored = DropPlan(driver.faults, 0.0, np.random.default_rng(0), "ignore")
        self._extra_s = sorted(at_s for at_s, _ in driver.faults.spans("expose") if at_s >= driver.first_s)
        self._truth = driver.truth_writer(stream)
        opened_s = float(self._sampling.device_s(np.array([driver.first_s]))[0])
        first = max(0, int(np.ceil((opened_s - self.phase_s) * rate_hz)))
        self._index = -(-first // align) * align
        self._seq = 0

    def instants(self, index: NDArray[Any]) -> NDArray[np.float64]:
        """Return the true times of grid numbers (integers or fractions)."""
        return self._sampling.true_s(self.phase_s + index / self._rate_hz)

    def take(self, count: int) -> Samples | None:
        """Return the next ``count`` grid instants' samples; fewer around faults; None at the end."""
        index = np.arange(self._index, self._index + count)
        self._index += count
        world_s = self.instants(index) + self._after_s
        if self._jitter_s:
            world_s = world_s + self._shutter_rng.uniform(-self._jitter_s, self._jitter_s, count)
        if world_s[0] >= self._limit_s:
            return None
        taken = world_s < self._limit_s
        if self._faults.faults:
            taken &= ~self._faults.is_silent(world_s) & ~self._ignored.dropped(world_s)
            index, world_s = self._with_extras(index[taken], world_s[taken], float(world_s[-1]))
            if not len(world_s):
                return self.take(count)
        else:
            index, world_s = index[taken], world_s[taken]
        capture_ns = self._start_ns + np.rint(world_s * SECOND_NS).astype(np.int64)
        seq = self._seq + self._each * np.arange(len(index), dtype=np.int64)
        self._seq += self._each * len(index)
        self._truth.write(seq, capture_ns)
        return Samples(
            index,
            seq,
            world_s,
            capture_ns,
            self.clock.ticks(world_s),
            self._path.arrivals(capture_ns),
            ~self._drops.dropped(world_s),
        )

    def _with_extras(
        self, index: Stamps, world_s: NDArray[np.float64], until_s: float
    ) -> tuple[Stamps, NDArray[np.float64]]:
        """Return grid numbers and times with those samples that nothing asked for, which have the number -1."""
        extra_s = [at_s for at_s in self._extra_s if at_s < min(until_s, self._limit_s)]
        del self._extra_s[: len(extra_s)]
        times_s = np.concatenate([world_s, extra_s])
        order = np.argsort(times_s, kind="stable")
        return np.concatenate([index, np.full(len(extra_s), -1)])[order], times_s[order]


class SimulatedDriver(Driver[SimConfigT]):
    """A device of the simulated rig. Subclasses name its streams and produce their frames."""

    niceness = 5

    def __init__(self, config: SimConfigT, context: DriverContext) -> None:
        super().__init__(config, context)
        self.world = World(config.seed, config.motion)
        self.start_ns = 0
        self.first_s = 0.0
        self.limit_s = np.inf
        self.faults = Faults(config.faults)
        self.device_clock = simulated_clock(config.clock, config.seed, context.name, self.faults.resets_s)
        self._real_start_ns = 0
        self._ahead = FramesAhead(context.name, self.produce)
        self._pace: PaceWriter | None = None
        self._coming_disconnect: Fault | None = None
        self._last_payload: dict[str, bytes] = {}
        self._truths: list[TruthWriter] = []
        self._damage_rng = stream_rng(config.seed, context.name, "damage")

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse a mount that the rig does not have."""
        if isinstance(config, SimulatedConfig) and config.mount is not None and config.mount not in _PLACES:
            raise ConfigError(f"mount {config.mount!r} is unknown; known: {', '.join(_PLACES)}")

    @abstractmethod
    def streams(self) -> Sequence[StreamInfo]:
        """Make the sample trains and return the streams; called by ``open`` once times are known."""

    @abstractmethod
    def produce(self) -> bool:
        """Push the next frames with :meth:`push`; return False when every train has ended.

        Called by the thread that works ahead.
        """

    def prepare(self) -> None:
        """Do what takes time before the world begins; called once by ``open``."""

    def open(self) -> Sequence[StreamInfo]:
        self.prepare()
        config = self.config
        self.start_ns = self._begin()
        now_ns = self.context.clock.now_ns()
        self._real_start_ns = self.start_ns
        if config.clock.keeps == "utc":
            self.device_clock = self.device_clock.set_to(self.start_ns + read_bases().utc_minus_host_ns)
        elif config.clock.keeps == "host":
            self.device_clock = self.device_clock.set_to(self.start_ns)
        late_s = max(0.0, (self._simulated_now_ns() - self.start_ns) / SECOND_NS)
        if config.speed != 1.0:
            shift_ns = config.utc_minus_host_ns
            if shift_ns is None:
                shift_ns = self.context.clock.utc_ns() - now_ns
            self.timeline = Timeline(self.context.host_id, shift_ns, is_virtual=True)
            late_s = late_s if self._has_run_before() else 0.0
        else:
            self._pace = PaceWriter(self.context.run_dir, self.context.name)
            if config.starts_with and not self._has_run_before():
                late_s = (
                    0.0  # the world began for all; who was opened too late runs late and skips nothing of it
                )
        self.first_s = late_s
        done = self._past_disconnects()
        coming = [fault for fault in config.faults if not (fault.kind == "disconnect" and fault.at_s in done)]
        self._coming_disconnect = Faults(tuple(coming)).disconnect_after(self.first_s)
        self.limit_s = min(
            config.seconds if config.seconds is not None else np.inf,
            self._coming_disconnect.at_s if self._coming_disconnect else np.inf,
        )
        return self.streams()

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        clock = self.context.clock
        deadline_ns = clock.now_ns() + round(timeout_s * SECOND_NS)
        next_ns = self._ahead.next_ns()
        if next_ns is None:
            return self._end(deadline_ns)
        due_ns = self._real_ns(next_ns)
        if due_ns > deadline_ns:
            clock.sleep_until(deadline_ns)
            return ()
        clock.sleep_until(due_ns)
        now_ns = self._simulated_now_ns()
        if self._pace is not None:
            self._pace.note(next_ns, now_ns)
        # A clock that sleeps to the microsecond may wake a little before the time that was rounded up.
        return self._ahead.take(max(now_ns, next_ns))

    def close(self) -> None:
        self._ahead.close()
        if self._pace is not None:
            self._pace.flush()
        for truth in self._truths:
            truth.close()
        self._truths.clear()

    def push(self, frame: Frame) -> None:
        """Queue a frame for the moment when its last byte has arrived."""
        self._ahead.push(frame)

    def columnar(
        self, modality: Modality, rate_hz: float, block: int, columns: Sequence[Column], latency_min_ns: int
    ) -> StreamInfo:
        """Return the one stream of a numeric sensor, named like the device; ``block`` samples are a frame."""
        name = self.context.name
        return StreamInfo(
            name,
            modality,
            Encoding.COLUMNS,
            rate_hz,
            frame_id=name,
            clock=self.device_clock.counter,
            latency=self.latency(latency_min_ns),
            frame_rate_hz=rate_hz / block,
            host_id=self.context.host_id,
            columns=tuple(columns),
            is_personal=self.is_personal(False),
            is_sampled=True,
            has_device_counter=True,
            is_synthetic=True,
            details={"simulator": "room", "seed": str(self.config.seed)},
        )

    def push_columns(self, stream: str, samples: Samples, values: NDArray[Any], block: int) -> None:
        """Queue (n, columns) readings of (n,) samples as blocks, each column of a block in one piece."""
        for run in samples.runs(block):
            rows = values[run]
            self.push(
                Frame(
                    stream,
                    int(samples.seq[run.start]),
                    len(rows),
                    samples.ticks[run],
                    samples.arrival_ns[run],
                    self.payload(stream, float(samples.world_s[run.start]), rows.T.tobytes),
                )
            )

    def payload(
        self, stream: str, world_s: float, make: Callable[[], bytes], *, may_shrink: bool = False
    ) -> bytes:
        """Return what ``make`` gives, or what a frozen or corrupting device sends in its place."""
        if not self.faults.faults:
            return make()
        last = self._last_payload.get(stream)
        if last is not None and self.faults.is_active("freeze", world_s):
            data = last if may_shrink or len(last) == len(make()) else make()
        else:
            data = make()
        self._last_payload[stream] = data
        if self.faults.is_active("corrupt", world_s):
            return damaged(data, self._damage_rng, may_shrink=may_shrink)
        return data

    def truth_writer(self, stream: str) -> TruthWriter:
        """Return the truth file of a stream, closed with the driver."""
        self._truths.append(TruthWriter(self.context.run_dir, stream))
        return self._truths[-1]

    def latency(self, min_ns: int) -> Latency:
        """Return the declared latency: the minimum is exact, as simulated."""
        return Latency(min_ns=min_ns)

    def mount(self, world_s: float = 0.0, name: str | None = None) -> Array:
        """Return T_body_sensor at a world time.

        Raises:
            ConfigError: If the rig has no such mount.
        """
        name = name or self.config.mount or self.context.name
        if name not in _PLACES:
            raise ConfigError(
                f"device {self.context.name}: no mount {name!r}; set mount to one of {', '.join(_PLACES)}"
            )
        T_body_sensor = _PLACES[name]
        bump = self.config.bump
        if bump is not None and world_s >= bump.at_s:
            T_body_sensor = T_body_sensor @ bump.T_before_after
        return T_body_sensor

    def is_personal(self, default: bool) -> bool:
        return default if self.config.personal is None else self.config.personal

    def rng(self, purpose: str) -> np.random.Generator:
        """Return this device's random stream for one purpose."""
        return stream_rng(self.config.seed, self.context.name, purpose)

    def _begin(self) -> int:
        """Return the host time of world time 0."""
        config, context = self.config, self.context
        if config.start_ns is not None:
            return config.start_ns
        if config.starts_with:
            return agree_on_start(context.run_dir, context.name, config.starts_with, context.clock)
        return context.clock.now_ns()

    def _simulated_now_ns(self) -> int:
        elapsed_ns = self.context.clock.now_ns() - self._real_start_ns
        if self.config.speed == 1.0:
            return self.start_ns + elapsed_ns
        return self.start_ns + round(elapsed_ns * self.config.speed)

    def _real_ns(self, simulated_ns: int) -> int:
        if self.config.speed == 1.0:
            return simulated_ns - self.start_ns + self._real_start_ns
        return self._real_start_ns + round((simulated_ns - self.start_ns) / self.config.speed)

    def _end(self, deadline_ns: int) -> Sequence[Frame]:
        fault = self._coming_disconnect
        if fault is None or fault.at_s > self.limit_s:
            raise EndOfStreamError(f"simulated device {self.context.name} ends after {self.limit_s:g} s")
        gone_ns = self.start_ns + round(fault.at_s * SECOND_NS)
        if self._real_ns(gone_ns) > deadline_ns:
            self.context.clock.sleep_until(deadline_ns)
            return ()
        self.context.clock.sleep_until(self._real_ns(gone_ns))
        back_ns = gone_ns + round(fault.for_s * SECOND_NS)
        with self._disconnect_file.open("a", encoding="ascii") as file:
            file.write(f"{fault.at_s!r} {self._real_ns(back_ns)}\n")
        raise DeviceError(
            f"simulated device {self.context.name} was disconnected at {fault.at_s:g} s, as its rig file asks"
        )

    def _past_disconnects(self) -> set[float]:
        """Return when earlier instances of this run were disconnected; refuse while still unplugged."""
        if not self._disconnect_file.exists():
            return set()
        done = set()
        for line in self._disconnect_file.read_text(encoding="ascii").splitlines():
            at_s, back_ns = line.split()
            done.add(float(at_s))
            left_ns = int(back_ns) - self.context.clock.now_ns()
            if left_ns > 0:
                raise DeviceError(
                    f"simulated device {self.context.name} is unplugged "
                    f"for another {left_ns / SECOND_NS:.1f} s"
                )
        return done

    @property
    def _disconnect_file(self) -> Path:
        return self.context.run_dir / f"{self.context.name}.disconnects"

    def _has_run_before(self) -> bool:
        files = (self.context.run_dir / FOLDER).glob(f"{self.context.name}*{SUFFIX}")
        return any(path.stat().st_size > 0 for path in files)
