"""Attacks that let a stream out of its consent by declaring it once more."""

from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from synchronizer_bench import Bench

from sensorium.drivers.driver import CAPTURE_ZONE
from sensorium.drivers.frame import Encoding, Frame, Modality, StreamInfo, stamps
from sensorium.sync.recording.personal import PersonalStreams

MICROPHONE = StreamInfo(
    "mic", Modality.AUDIO, Encoding.PCM_S16LE, 100.0, "mic", shape=(1,), is_personal=True, frame_rate_hz=10.0
)
STRIPPED = {
    "not personal": replace(MICROPHONE, is_personal=False),
    "another modality": replace(MICROPHONE, modality=Modality.OTHER),
    "another zone": replace(MICROPHONE, details={CAPTURE_ZONE: "hall2"}),
}


@pytest.mark.parametrize("said", STRIPPED)
def test_a_second_declaration_does_not_take_a_stream_out_of_its_consent(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]], said: str
) -> None:
    bench = Bench(tmp_path, context, ("mic",))
    mic = bench.driver(MICROPHONE, 1)
    bench.settle(mic)
    mic.end(linger_s=0.05)
    bench.settle()
    forged = bench.driver(STRIPPED[said], 2)
    bench.settle(forged)
    for block in range(5):
        forged.publish(Frame("mic", 10 * block, 10, None, stamps(bench.clock.now_ns()), bytes(20)))
        bench.advance(0.1, forged)
    assert not forged.is_welcome
    assert any("stream mic is personal" in reason for reason in bench.synchronizer.receiver.rejected)
    forged.end(linger_s=0.05)
    bench.settle()
    assert all(manifest.stream("mic").total.recorded == 0 for manifest in bench.close())


def test_a_recorder_that_is_started_again_remembers_what_is_personal(tmp_path: Path) -> None:
    PersonalStreams(tmp_path).add([MICROPHONE])
    after_a_kill = PersonalStreams(tmp_path)
    assert after_a_kill.objection([STRIPPED["not personal"]])
    assert not after_a_kill.objection([MICROPHONE])
