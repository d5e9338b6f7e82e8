"""Driver ``sim_lidar``: a spinning LiDAR of the simulated rig, with its IMU.

Each column is cast from where the sensor is at that column's instant: the scan is skewed by the motion, and
``World.pose`` at the truth times de-skews it. Payloads are real Ouster packets. Noise: range, white, 8 mm;
reflectivity = brightness of the surface + white, 2 of 255.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from sensorium.calibration.geometry import Array
from sensorium.drivers.devices.ouster.imu import IMU_COLUMNS
from sensorium.drivers.devices.ouster.imu import LEGACY_RATE_HZ as IMU_RATE_HZ
from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import Encoding, Frame, Modality, StreamInfo, stamps
from sensorium.drivers.payloads.ouster import Scan, beam_rays, scan_points
from sensorium.simulators.device import Samples, SampleTrain, SimulatedConfig, SimulatedDriver
from sensorium.simulators.device_clock import ClockConfig, LatencyConfig, Stamps
from sensorium.simulators.emulators.ouster_encoder import default_metadata, encode_scan
from sensorium.simulators.imu import InertialNoise, SimulatedImuConfig, inertial_truth
from sensorium.simulators.truth import TruthWriter
from sensorium.timebase import SECOND_NS

_REFLECTIVITY_NOISE = 2.0


class SimulatedLidarConfig(SimulatedConfig):
    """Options of ``sim_lidar``; ``rings`` x ``columns`` pixels per revolution.

    ``latency.min_ms`` counts from the last column of a packet; declared is the latency of its first column.

    Attributes:
        has_crc: End packets with a CRC as firmware 3 does (doubles the CPU time); else zeros, as firmware 2.
    """

    rate_hz: PositiveFloat = 10.0
    rings: PositiveInt = 64
    columns: PositiveInt = 1024
    profile: str = "RNG19_RFL8_SIG16_NIR16"
    preview_points: PositiveInt = 4096
    range_noise_m: NonNegativeFloat = 0.008
    has_crc: bool = False
    covered: bool = False
    clock: ClockConfig = ClockConfig(tick_ns=1)
    latency: LatencyConfig = LatencyConfig(min_ms=0.2, jitter_ms=0.3)


class SimulatedLidar(SimulatedDriver[SimulatedLidarConfig]):
    """Streams ``<name>`` (packets), ``<name>_imu``, ``<name>_points`` (thinned), as the Ouster driver."""

    config_type = SimulatedLidarConfig

    def __init__(self, config: SimulatedLidarConfig, context: DriverContext) -> None:
        super().__init__(config, context)
        self.metadata = default_metadata(config.rings, config.columns, config.rate_hz, profile=config.profile)
        self._rng = self.rng("noise")
        self._imu_noise = InertialNoise(SimulatedImuConfig(rate_hz=IMU_RATE_HZ), self.rng("imu"))
        self._packets: SampleTrain | None = None
        self._imu: SampleTrain | None = None
        self._points_seq = 0
        self._points_truth: TruthWriter | None = None
        directions, offsets = beam_rays(self.metadata)
        # Column-major, because each column has its own pose.
        self._directions = np.ascontiguousarray(directions.transpose(1, 0, 2))
        self._offsets = np.ascontiguousarray(offsets.transpose(1, 0, 2))

    @property
    def _per_frame(self) -> int:
        return self.metadata.packets_per_frame

    def prepare(self) -> None:
        _ = self.world.scene  # paints it; every later look finds it

    def streams(self) -> Sequence[StreamInfo]:
        config, name = self.config, self.context.name
        self.mount()
        self.mount(name=self._imu_mount)
        path_ns = round(config.latency.min_ms * 1e6)
        column_ns = SECOND_NS / (config.rate_hz * config.columns)
        min_ns = path_ns + round((self.metadata.columns_per_packet - 1) * column_ns)
        self._packets = SampleTrain(
            self, name, config.rate_hz * self._per_frame, min_ns, phase_s=0.0, align=self._per_frame
        )
        self._imu = SampleTrain(self, f"{name}_imu", IMU_RATE_HZ, path_ns, drops=False)
        self._points_truth = self.truth_writer(f"{name}_points")
        common = {"simulator": "room", "seed": str(config.seed)}
        lidar = StreamInfo(
            name,
            Modality.LIDAR,
            Encoding.OUSTER,
            config.rate_hz * self._per_frame,
            frame_id=name,
            clock=self.device_clock.counter,
            latency=self.latency(min_ns),
            stamp_of="packet",
            shape=(config.rings, config.columns),
            host_id=self.context.host_id,
            frame_rate_hz=config.rate_hz,
            is_personal=self.is_personal(False),
            has_device_counter=True,
            is_synthetic=True,
            max_payload_bytes=self._per_frame * self.metadata.packet_bytes,
            details={"metadata": self.metadata.text, "serial": self.metadata.serial, **common},
        )
        imu = StreamInfo(
            f"{name}_imu",
            Modality.IMU,
            Encoding.COLUMNS,
            IMU_RATE_HZ,
            frame_id=f"{name}_imu",
            clock=self.device_clock.counter,
            latency=self.latency(path_ns),
            host_id=self.context.host_id,
            frame_rate_hz=config.rate_hz,
            columns=IMU_COLUMNS[:6],
            is_personal=self.is_personal(False),
            is_sampled=True,
            has_device_counter=True,
            is_synthetic=True,
            details={"serial": self.metadata.serial, **common},
        )
        points = StreamInfo(
            f"{name}_points",
            Modality.LIDAR,
            Encoding.POINTS,
            config.rate_hz,
            frame_id=name,
            clock=self.device_clock.counter,
            latency=self.latency(min_ns),
            stamp_of="packet",
            units="m",
            host_id=self.context.host_id,
            is_personal=self.is_personal(False),
            has_device_counter=True,
            is_synthetic=True,
            reference_of=name,
            max_payload_bytes=self.config.preview_points * 16,
            details={"stamp": "last packet of the revolution", "intensity": "reflectivity", **common},
        )
        return (lidar, imu, points)

    def produce(self) -> bool:
        assert self._packets is not None
        assert self._imu is not None
        packets = self._packets.take(self._per_frame)
        readings = self._imu.take(max(1, round(IMU_RATE_HZ / self.config.rate_hz)))
        if readings is not None:
            self._push_imu(readings)
        if packets is None:
            return readings is not None
        if packets.kept.any():
            self._push_scan(packets)
        return True

    def scan(self, revolution: int) -> tuple[Scan, Array]:
        """Return one noisy revolution since the common start and the (W,) true times of its columns."""
        column_s, column_ns = self._column_times(revolution)
        directions, offsets = self._directions, self._offsets
        motion = self.world.motion(column_s).carried_to(self.mount(float(column_s[0])))
        turn = motion.rotation.transpose(0, 2, 1).astype(np.float32)
        rays = (directions @ turn).reshape(-1, 3)
        origins = offsets @ turn + motion.position_m[:, None, :].astype(np.float32)
        hits = self.world.scene.cast(origins.reshape(-1, 3), rays)
        noise = self._rng.standard_normal((2, len(rays)), dtype=np.float32)
        range_mm = np.rint(1000 * (hits.range_m + noise[0] * np.float32(self.config.range_noise_m)))
        if self.config.covered:
            range_mm[:] = 0.0
        brightness = np.clip(hits.reflectivity + noise[1] * np.float32(_REFLECTIVITY_NOISE), 0, 255)
        shape = (self.config.columns, self.config.rings)
        reflectivity = brightness.reshape(shape).T.astype(np.uint16)
        silent = np.zeros_like(reflectivity)
        valid = np.ones(self.config.columns, np.bool_)
        scan = Scan(
            range_mm.reshape(shape).T.astype(np.uint32),
            reflectivity,
            silent,
            silent,
            column_ns,
            valid,
            valid.astype(np.uint32),
        )
        return scan, column_s

    @property
    def _imu_mount(self) -> str:
        return f"{self.config.mount or self.context.name}_imu"

    def _column_times(self, revolution: int) -> tuple[Array, Stamps]:
        assert self._packets is not None
        per_packet = self.metadata.columns_per_packet
        first = revolution * self._per_frame
        column_s = self._packets.instants(first + np.arange(self.config.columns) / per_packet)
        return column_s, self.device_clock.ticks(column_s)

    def _push_scan(self, packets: Samples) -> None:
        revolution = int(packets.index[0]) // self._per_frame
        scan, _ = self.scan(revolution)
        pieces = encode_scan(
            self.metadata,
            revolution,
            scan.range_mm,
            scan.reflectivity,
            scan.column_ns,
            near_ir=scan.reflectivity,
            with_crc=self.config.has_crc,
        )
        name, number = self.context.name, packets.index % self._per_frame
        for run in packets.runs(self._per_frame):
            sent = number[run]
            joined = b"".join(pieces[packet] for packet in sent)
            self.push(
                Frame(
                    name,
                    int(packets.seq[run.start]),
                    len(sent),
                    packets.ticks[run],
                    packets.arrival_ns[run],
                    self.payload(name, float(packets.world_s[run.start]), partial(bytes, joined)),
                )
            )
        self._push_points(packets, scan, number[packets.kept])

    def _push_points(self, packets: Samples, scan: Scan, sent: Stamps) -> None:
        arrived = np.repeat(np.isin(np.arange(self._per_frame), sent), self.metadata.columns_per_packet)
        scan.range_mm[:, ~arrived] = 0
        points = scan_points(scan, self.metadata, self.config.preview_points)
        assert self._points_truth is not None
        last = int(np.flatnonzero(packets.kept)[-1])
        seq = self._points_seq
        self._points_seq += 1
        self._points_truth.write(stamps(seq), packets.capture_ns[last : last + 1])
        stream = f"{self.context.name}_points"
        self.push(
            Frame(
                stream,
                seq,
                1,
                packets.ticks[last : last + 1],
                packets.arrival_ns[last : last + 1],
                self.payload(stream, float(packets.world_s[last]), points.astype("<f4").tobytes),
            )
        )

    def _push_imu(self, readings: Samples) -> None:
        mount = self.mount(float(readings.world_s[0]), self._imu_mount)
        motion = self.world.motion(readings.world_s).carried_to(mount)
        values = self._imu_noise.measured(inertial_truth(motion))
        scales = [column.scale for column in IMU_COLUMNS[:6]]
        raw = (values / scales).astype("<f4")
        self.push_columns(f"{self.context.name}_imu", readings, raw, len(raw))
