"""What the recorder refuses of a driver that does not keep to its declaration."""

import pytest

from sensorium.drivers.frame import Column, Encoding, Frame, Modality, StreamInfo, stamps
from sensorium.errors import WireError
from sensorium.sync.clocks.published import MapStamper
from sensorium.sync.recording.streams import LiveStream

STREAMS = {
    "raw": StreamInfo("raw", Modality.CAMERA, Encoding.MONO8, 30.0, "raw", shape=(4, 6)),
    "sound": StreamInfo("sound", Modality.AUDIO, Encoding.PCM_S16LE, 48_000.0, "sound", shape=(2,)),
    "points": StreamInfo("points", Modality.LIDAR, Encoding.POINTS, 10.0, "points"),
    "imu": StreamInfo(
        "imu", Modality.IMU, Encoding.COLUMNS, 200.0, "imu", columns=(Column("gyro_x", "rad/s", "<i2"),)
    ),
}


def checked(name: str, payload: bytes, count: int) -> None:
    stream = LiveStream(STREAMS[name], 0, MapStamper(STREAMS[name]))
    stream.check(Frame(name, 0, count, None, stamps(1_000_000_000), payload), now_ns=1_000_000_000)


@pytest.mark.parametrize(
    ("name", "size", "count"), [("raw", 24, 1), ("sound", 40, 10), ("points", 32, 1), ("imu", 6, 3)]
)
def test_a_payload_of_another_size_than_its_samples_is_refused_before_it_reaches_the_writer(
    name: str, size: int, count: int
) -> None:
    checked(name, bytes(size), count)
    with pytest.raises(WireError, match=rf"{name} has {size + 1} bytes"):
        checked(name, bytes(size + 1), count)
