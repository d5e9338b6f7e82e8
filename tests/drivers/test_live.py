"""The live plane: viewers see frames of the streams that they watch; a slow one loses, nobody waits."""

from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from sensorium.drivers.bus.live import QUEUED_MESSAGES, LivePublisher, LiveSubscriber
from sensorium.drivers.frame import Encoding, Frame, Modality, StreamInfo, stamps

CAMERA = StreamInfo("cam", Modality.CAMERA, Encoding.JPEG, 30.0, "cam")
OTHER = replace(CAMERA, name="other")


def frame(seq: int, stream: str = "cam", size: int = 100) -> Frame:
    return Frame(stream, seq, 1, None, stamps(seq), bytes([seq % 256]) * size)


def wait_until_watched(publisher: LivePublisher, stream: str, subscriber: LiveSubscriber) -> None:
    for _ in range(200):
        publisher.step()
        if publisher.is_watched(stream):
            return
        assert subscriber.receive(0.01) is None
    pytest.fail("the subscription did not arrive")


def test_a_viewer_sees_the_declaration_and_the_frames_of_what_it_watches(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/live"
    publisher = LivePublisher(endpoint, context)
    publisher.declare(CAMERA)
    viewer = LiveSubscriber(endpoint, ("cam",), context)
    wait_until_watched(publisher, "cam", viewer)
    assert not publisher.is_watched("other")
    publisher.offer(7, frame(0, "other"))
    publisher.offer(7, frame(1))
    received = viewer.receive(2.0)
    assert received is not None
    assert (received.stream, received.seq, received.payload) == ("cam", 1, frame(1).payload)
    assert viewer.infos == {"cam": CAMERA}
    viewer.close()
    publisher.close()


def test_a_viewer_that_does_not_read_loses_frames_and_the_publisher_never_waits(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/live"
    publisher = LivePublisher(endpoint, context)
    viewer = LiveSubscriber(endpoint, ("cam",), context)
    wait_until_watched(publisher, "cam", viewer)
    sent = 2000
    for seq in range(sent):
        publisher.offer(7, frame(seq, size=50_000))
    seen = []
    while (received := viewer.receive(0.2)) is not None:
        seen.append(received.seq)
    assert QUEUED_MESSAGES <= len(seen) < sent
    assert seen == sorted(seen)
    viewer.close()
    publisher.close()
