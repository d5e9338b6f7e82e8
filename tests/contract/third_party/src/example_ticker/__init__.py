"""A device that counts at a fixed rate: the smallest complete driver."""

import struct
from collections.abc import Sequence
from typing import ClassVar

from pydantic import PositiveFloat

from sensorium.drivers.driver import Driver, DriverConfig, DriverContext
from sensorium.drivers.frame import (
    ClockKind,
    Column,
    DeviceClock,
    Encoding,
    Frame,
    Loss,
    Modality,
    StreamInfo,
    stamps,
)
from sensorium.timebase import SECOND_NS


class TickerConfig(DriverConfig):
    rate_hz: PositiveFloat = 100.0


class Ticker(Driver[TickerConfig]):
    """One stream whose n-th sample is n; its clock is a microsecond counter that starts at 0."""

    config_type: ClassVar[type[DriverConfig]] = TickerConfig

    def __init__(self, config: TickerConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self._period_ns = round(SECOND_NS / config.rate_hz)
        self._seq = 0
        self._start_ns = 0

    def open(self) -> Sequence[StreamInfo]:
        self._start_ns = self.context.clock.now_ns()
        return [
            StreamInfo(
                name=f"{self.context.name}_count",
                modality=Modality.OTHER,
                encoding=Encoding.COLUMNS,
                columns=(Column("count", "1", "<i8"),),
                rate_hz=self.config.rate_hz,
                frame_id=self.context.name,
                clock=DeviceClock(ClockKind.FREE, tick_ns_num=1000),
                host_id=self.context.host_id,
                is_personal=bool(self.config.personal),
                max_payload_bytes=8,
            )
        ]

    def read(self, timeout_s: float) -> Sequence[Frame | Loss]:
        clock = self.context.clock
        due_ns = self._start_ns + self._seq * self._period_ns
        clock.sleep_until(min(due_ns, clock.now_ns() + round(timeout_s * SECOND_NS)))
        now_ns = clock.now_ns()
        if now_ns < due_ns:
            return []
        ticks = stamps(self._seq * self._period_ns // 1000)
        name = f"{self.context.name}_count"
        frame = Frame(name, self._seq, 1, ticks, stamps(now_ns), struct.pack("<q", self._seq))
        self._seq += 1
        return [frame]

    def close(self) -> None:
        return
