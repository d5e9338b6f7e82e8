"""The driver host: one process per device that opens its driver and publishes what it reads.

Run by the supervisor as ``python -m sensorium.drivers.host SPEC.json``.
"""

import json
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq
from pydantic import BaseModel, ConfigDict, Field

from sensorium.drivers.bus.context import bus_context
from sensorium.drivers.bus.counters import CounterFile
from sensorium.drivers.bus.publisher import LINGER_S, BusPublisher
from sensorium.drivers.bus.wire import Declare
from sensorium.drivers.driver import CAPTURE_ZONE, Driver, DriverConfig, DriverContext
from sensorium.drivers.frame import Frame, StreamInfo
from sensorium.drivers.registry import load_driver
from sensorium.drivers.stages import Item, Pipeline, stages_for
from sensorium.errors import DeviceError, EndOfStreamError, SensoriumError
from sensorium.masking import MaskedOutput, masked, secrets_of
from sensorium.priority import give_way, go_first
from sensorium.stopping import is_orphaned, is_recorded, stop_on_sigterm
from sensorium.timebase import SECOND_NS, Clock, HostClock, Timeline, read_bases

READ_TIMEOUT_S = 0.02
WELCOME_TIMEOUT_NS = 30 * SECOND_NS
OPTIONS_ON_STDIN = "options_on_stdin"
"""In a spec file: the options hold a secret, which no file may; they come through standard input."""


class HostSpec(BaseModel):
    """What the supervisor tells a driver host.

    Attributes:
        codec: The ``codec`` key of the device's entry in the rig file; None = what its options ask for,
            then what is exact and pays.
        batch_ms: Small samples are joined for so long before they travel; 0 = never.
        token: By which the recorder knows that the supervisor started this process.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    driver: str
    options: dict[str, Any]
    endpoint: str
    run_dir: Path
    host_id: str
    codec: str | None = None
    batch_ms: float = Field(default=10.0, ge=0, le=1000)
    token: str = ""


class DriverHost:
    """Moves frames from one driver through its stages to the bus."""

    def __init__(
        self,
        spec: HostSpec,
        clock: Clock,
        context: zmq.Context[zmq.Socket[bytes]],
        refused_priority: str = "",
    ) -> None:
        """``refused_priority``: what this process could not get of the system, in words."""
        self._clock = clock
        self._is_stopping = False
        self._next_look_ns = 0
        driver_type = load_driver(spec.driver)
        config = driver_type.config_type.model_validate(spec.options)
        driver_context = DriverContext(spec.name, spec.host_id, clock, spec.run_dir)
        self.driver: Driver[Any] = driver_type(config, driver_context)
        self._spec = spec
        self._refused_priority = refused_priority
        self._config = config
        self._pipeline = Pipeline((), ())
        self._bus = BusPublisher(spec.endpoint, secrets.randbits(32), clock, context)

    def open(self) -> None:
        """Open the device and return once the recorder knows its streams.

        The recorder must be there first: whatever it took to start would be missing from the recording.

        Raises:
            DeviceError: If the device is missing, or no recorder answered within 30 s.
        """
        self._wait(lambda: self._bus.is_served, "no recorder serves the bus")
        if self._is_stopping:
            return
        infos = tuple(_as_configured(info, self._config) for info in self.driver.open())
        stages = stages_for(self.driver, infos, self._spec.codec, self._spec.batch_ms)
        self._pipeline = Pipeline(stages, infos)
        self._declare(self._pipeline.infos)
        self._wait(lambda: self._bus.is_welcome, "the recorder did not take the device's streams")

    def _declare(self, infos: Sequence[StreamInfo]) -> None:
        spec, instance = self._spec, self._bus.instance
        if not infos:
            raise DeviceError(f"device {spec.name}: its driver {spec.driver} declared no streams")
        path = spec.run_dir / "counters" / f"{spec.name}-{instance:08x}.counters"
        counters = CounterFile(path, instance, [info.name for info in infos])
        first_seq = dict(self.driver.first_seq)
        for name, seq in first_seq.items():
            counters.advance(name, seq)
        timeline = self.driver.timeline
        declare = Declare(
            instance=instance,
            device=spec.name,
            driver=spec.driver,
            streams=tuple(infos),
            timeline=timeline or Timeline(spec.host_id, read_bases().utc_minus_host_ns),
            is_live=timeline is None,
            counters=str(path),
            first_seq=first_seq,
            refused_priority=self._refused_priority,
            token=spec.token,
        )
        self._bus.declare(declare, counters)

    def _wait(self, is_done: Callable[[], bool], otherwise: str) -> None:
        deadline_ns = self._clock.now_ns() + WELCOME_TIMEOUT_NS
        while not is_done() and not self._is_stopping:
            self._bus.step(wait_s=READ_TIMEOUT_S)
            self._look_after_session()
            if self._clock.now_ns() > deadline_ns:
                seconds = WELCOME_TIMEOUT_NS // SECOND_NS
                raise DeviceError(f"{otherwise} within {seconds} s; is the agent still running?")

    def step(self) -> None:
        """Move what the driver has within 20 ms onto the bus."""
        self._put(self._pipeline.apply(self.driver.read(self._patience_s())))
        self._put(self._pipeline.due(self._clock.now_ns()))
        self._bus.step()
        self._look_after_session()

    def _look_after_session(self) -> None:
        """End where the supervisor is dead and the recorder, too: nobody starts another one, and none hears us."""
        if not is_orphaned() or self._clock.now_ns() < self._next_look_ns:
            return
        self._next_look_ns = self._clock.now_ns() + SECOND_NS
        if not is_recorded(self._spec.run_dir):
            self.stop()

    def _patience_s(self) -> float:
        """How long the driver may wait for data: not longer than a stage may hold some back."""
        due_ns = self._pipeline.due_ns
        if due_ns is None:
            return READ_TIMEOUT_S
        return min(READ_TIMEOUT_S, max(0, due_ns - self._clock.now_ns()) / SECOND_NS)

    def _put(self, items: Sequence[Item]) -> None:
        for item in items:
            if not isinstance(item, Frame):
                self._bus.lose(item)
                continue
            if self.driver.blocks:
                self._wait_for_credit(len(item.payload))
            if not self._bus.publish(item):
                self._pipeline.refused(item)

    def _wait_for_credit(self, payload_bytes: int) -> None:
        while not self._bus.has_credit(payload_bytes) and not self._is_stopping:
            self._bus.step(wait_s=READ_TIMEOUT_S)
            self._look_after_session()

    def run(self) -> None:
        """Publish until the source ends or :meth:`stop` is called; re-raises what the driver raised."""
        error = ""
        try:
            self.open()
            self._publish_all()
        except SensoriumError as err:
            error = masked(str(err), secrets_of(self._spec.options))
            raise
        finally:
            self.driver.close()
            self._bus.end(error)

    def _publish_all(self) -> None:
        try:
            while not self._is_stopping:
                self.step()
        except EndOfStreamError:
            pass
        finally:  # a device that failed has still sent what the stages hold
            self._put(self._pipeline.flush())

    def stop(self) -> None:
        self._is_stopping = True


def _as_configured(info: StreamInfo, config: DriverConfig) -> StreamInfo:
    """Return a stream with what the rig file says of its device: whether it is personal, and where it stands."""
    details = {**info.details, CAPTURE_ZONE: config.zone} if config.zone else info.details
    is_personal = info.is_personal if config.personal is None else config.personal
    return replace(info, is_personal=is_personal, details=details)


def _take_priority(spec: HostSpec) -> str:
    """Let what can wait give way; a device that cannot goes first: return what was refused, "" if nothing."""
    driver = load_driver(spec.driver)
    if driver.niceness:
        give_way(driver.niceness, HostClock())
    elif not driver.blocks:
        return go_first(f"device {spec.name}", HostClock())
    return ""


def _read_spec(path: Path) -> HostSpec:
    """Return what to run; options that hold a secret come through standard input, the file shows them masked."""
    document = json.loads(path.read_text())
    if document.pop(OPTIONS_ON_STDIN, False):
        document["options"] = json.load(sys.stdin)
        MaskedOutput.begin(secrets_of(document["options"]))
    return HostSpec.model_validate(document)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one driver host; exit code 0 = the source ended or we were told to stop, else the error's."""
    (spec_path,) = sys.argv[1:] if argv is None else argv
    spec = _read_spec(Path(spec_path))
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    with bus_context(LINGER_S + 1.0) as context:
        try:
            host = DriverHost(spec, HostClock(), context, _take_priority(spec))

            stop_on_sigterm(host.stop)
            host.run()
        except SensoriumError as err:
            print(f"{spec.name}: {err}", file=sys.stderr)  # noqa: T201 - the supervisor reads it
            return err.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
