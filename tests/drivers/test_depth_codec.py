import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sensorium.drivers.payloads.depth import VERSION, decode, encode
from sensorium.drivers.payloads.envelope import AS_IT_CAME, AS_IT_CAME_ZSTD
from sensorium.errors import PayloadError


def _disparity_depth(height: int, width: int) -> NDArray[np.uint16]:
    """Return a slanted floor as a disparity camera sees it: few values, ever further apart; holes at the left."""
    disparity = np.linspace(400, 40, height)[:, None] + np.linspace(0, 20, width)
    image = np.rint(50_000 / np.rint(disparity)).astype("<u2")
    image[:, : width // 10] = 0
    return image


@settings(deadline=None, max_examples=300)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_any_image_comes_back_and_grows_by_a_byte_at_most(data: st.DataObject, seed: int) -> None:
    height, width = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    top = data.draw(st.sampled_from([1, 2, 7, 300, 40_000, 65_536]))
    step = data.draw(st.sampled_from([step for step in (1, 3, 200) if step * (top - 1) < 65_536]))
    image = (np.random.default_rng(seed).integers(0, top, (height, width)) * step).astype("<u2")
    coded = encode(image.tobytes(), height, width)
    assert decode(coded) == image.tobytes()
    assert len(coded) <= image.nbytes + 1


def test_values_that_are_far_apart_cost_no_more_than_their_ranks() -> None:
    ranks = _disparity_depth(240, 320) + np.random.default_rng(2).integers(0, 3, (240, 320), np.uint16)
    used, dense = np.unique(ranks, return_inverse=True)
    apart = (dense.reshape(ranks.shape) * 7 + 300).astype("<u2")
    close = dense.reshape(ranks.shape).astype("<u2")
    coded_apart, coded_close = (encode(image.tobytes(), 240, 320) for image in (apart, close))
    assert coded_apart[0] == coded_close[0] == VERSION
    assert decode(coded_apart) == apart.tobytes()
    assert len(coded_apart) <= len(coded_close) + 2 * len(used)


def test_what_is_no_such_image_is_kept_as_it_came_and_says_so() -> None:
    noise = np.random.default_rng(1).bytes(2 * 48 * 64)
    zeros = bytes(1001)
    for payload, form in ((noise, AS_IT_CAME), (zeros, AS_IT_CAME_ZSTD), (b"", AS_IT_CAME)):
        coded = encode(payload, 48, 64)
        assert coded[0] == form
        assert decode(coded) == payload


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_damaged_payload_is_refused_or_decodes_to_some_pixels(data: st.DataObject) -> None:
    coded = bytearray(encode(_disparity_depth(24, 32).tobytes(), 24, 32))
    for _ in range(data.draw(st.integers(1, 3))):
        coded[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(coded)))
    for damaged in (bytes(coded), bytes(coded[:cut])):
        with contextlib.suppress(PayloadError):
            assert isinstance(decode(damaged), bytes)


def test_real_depth_comes_back_and_is_so_much_smaller(shared_data: Path) -> None:
    frames = _realsense_frames(shared_data / "realsense/single_depth_color_640x480.bag")
    assert len(frames) == 2
    for image in frames:
        coded = encode(image.tobytes(), *image.shape)
        assert decode(coded) == image.tobytes()
        assert image.nbytes > 5.3 * len(coded)


def _realsense_frames(path: Path) -> list[NDArray[np.uint16]]:
    rosbag1 = pytest.importorskip("rosbags.rosbag1")
    typesys = pytest.importorskip("rosbags.typesys")
    types = typesys.get_typestore(typesys.Stores.ROS1_NOETIC)
    frames = []
    with rosbag1.Reader(path) as bag:
        for connection, _, raw in bag.messages():
            if connection.msgtype == "sensor_msgs/msg/Image":
                found = types.deserialize_ros1(raw, connection.msgtype)
                if found.encoding == "mono16":
                    frames.append(np.frombuffer(found.data, "<u2").reshape(found.height, found.width))
    return frames
