"""The PortAudio driver against a real PulseAudio null sink, and its sample counter."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from contract import pulseaudio
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sensorium.drivers.devices.sounddevice import (
    Block,
    Numbered,
    SampleCounter,
    SoundDeviceConfig,
    SoundDeviceDriver,
)
from sensorium.drivers.driver import DriverContext
from sensorium.errors import ConfigError, DeviceError
from sensorium.timebase import SECOND_NS, HostClock

RATE_HZ = 48_000
BLOCK = 480
BLOCK_S = BLOCK / RATE_HZ

RECORDER = """
import json, sys
from pathlib import Path
import numpy as np
from sensorium.drivers.driver import DriverContext
from sensorium.drivers.frame import Frame
from sensorium.drivers.devices.sounddevice import SoundDeviceConfig, SoundDeviceDriver
from sensorium.errors import SensoriumError
from sensorium.timebase import HostClock

config = SoundDeviceConfig(**json.loads(sys.argv[1]))
driver = SoundDeviceDriver(config, DriverContext("mic", "here", HostClock(), Path(sys.argv[2])))
try:
    SoundDeviceDriver.check(config)
    info = driver.open()[0]
    items = []
    while sum(item.count for item in items) < config.rate_hz:
        items += driver.read(0.5)
except SensoriumError as err:
    print(json.dumps({"error": type(err).__name__, "message": str(err)}))
    sys.exit()
finally:
    driver.close()
frames = [item for item in items if isinstance(item, Frame)]
sound = np.concatenate([np.frombuffer(frame.payload, "<i2").reshape(-1, config.channels) for frame in frames])
spectrum = np.abs(np.fft.rfft(sound[: config.rate_hz, 0] * np.hanning(config.rate_hz)))
print(json.dumps({
    "peak_hz": int(np.argmax(spectrum)),
    "shape": sound.shape,
    "loss": len(items) - len(frames),
    "seq": [frame.seq for frame in frames],
    "ticks": [int(frame.device_ticks[0]) for frame in frames],
    "arrival_ns": [int(frame.arrival_ns[0]) for frame in frames],
    "tick_ns": info.clock.tick_ns,
    "kind": info.clock.kind.value,
    "latency_min_ns": info.latency.min_ns,
    "is_personal": info.is_personal,
    "max_payload_bytes": info.max_payload_bytes,
    "payload_bytes": max(len(frame.payload) for frame in frames),
}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    reason = pulseaudio.why_not()
    if reason is not None:
        pytest.skip(reason)
    with pulseaudio.null_sink(tmp_path_factory.mktemp("pa")) as found:
        yield found


def record(environment: dict[str, str], folder: Path, **options: object) -> dict[str, Any]:
    """Record one second in a process of its own, so that PortAudio sees only the private daemon."""
    done = subprocess.run(
        [sys.executable, "-c", RECORDER, json.dumps(options), str(folder)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_tone_played_on_a_null_sink_is_recorded_at_its_frequency(
    environment: dict[str, str], tmp_path: Path
) -> None:
    found = record(environment, tmp_path, device="mic0", rate_hz=RATE_HZ, channels=2, block=BLOCK)
    assert found["peak_hz"] == pulseaudio.TONE_HZ
    assert found["shape"][1] == 2
    assert found["kind"] == "samples"
    assert found["tick_ns"] == SECOND_NS / RATE_HZ
    assert found["latency_min_ns"] == SECOND_NS * BLOCK // RATE_HZ
    assert found["is_personal"]
    assert found["payload_bytes"] == found["max_payload_bytes"] == BLOCK * 2 * 2
    assert found["ticks"] == found["seq"], "the sample counter is both the number and the clock"
    assert found["arrival_ns"] == sorted(found["arrival_ns"])
    if not found["loss"]:
        assert found["seq"] == list(range(0, len(found["seq"]) * BLOCK, BLOCK))


def test_a_microphone_that_is_not_there_is_named_beside_those_that_are(
    environment: dict[str, str], tmp_path: Path
) -> None:
    found = record(environment, tmp_path, device="absent microphone")
    assert found["error"] == "DeviceError"
    assert "absent microphone" in found["message"]
    assert "mic0" in found["message"]


def test_a_missing_portaudio_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = SoundDeviceDriver(SoundDeviceConfig(), DriverContext("mic", "here", HostClock(), tmp_path))
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ConfigError, match=r"pip install 'sensorium\[audio\]'"):
        driver.open()
    driver.close()


def test_a_package_without_its_library_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    driver = SoundDeviceDriver(SoundDeviceConfig(), DriverContext("mic", "here", HostClock(), tmp_path))
    with pytest.raises(DeviceError, match="apt-get install libportaudio2"):
        driver.open()
    driver.close()


@pytest.mark.parametrize("options", [{"rate": 48_000}, {"channels": 0}, {"block": 0}, {"rate_hz": 44_100.5}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SoundDeviceConfig(**options)


def counted(counter: SampleCounter, blocks: Sequence[tuple[float, float, bool]]) -> list[Numbered]:
    """Count blocks given by capture time, arrival (both s) and whether they are flagged."""
    found: list[Numbered] = []
    for adc_s, arrival_s, is_flagged in blocks:
        found += counter.take(Block(b"", BLOCK, adc_s, round(arrival_s * SECOND_NS), is_flagged))
    return found


@given(st.lists(st.floats(-0.05, 0.05), min_size=2, max_size=60), st.data())
def test_jitter_of_the_sound_server_is_not_taken_for_loss(jitter_s: list[float], data: st.DataObject) -> None:
    late_s = [data.draw(st.floats(0, 0.15)) for _ in jitter_s]
    times = [index * BLOCK_S for index in range(len(jitter_s))]
    blocks = [
        (at + jitter, at + late, False) for at, jitter, late in zip(times, jitter_s, late_s, strict=True)
    ]
    found = counted(SampleCounter(RATE_HZ), blocks)
    assert [each.first for each in found] == [index * BLOCK for index in range(len(jitter_s))]
    assert not any(each.lost for each in found)


@pytest.mark.parametrize("is_flagged", [True, False])
@pytest.mark.parametrize("gap_s", [0.25, 0.5, 3.0])
def test_an_overrun_is_counted_by_how_far_the_capture_time_jumped(is_flagged: bool, gap_s: float) -> None:
    before = [(100 + index * BLOCK_S, index * BLOCK_S, False) for index in range(20)]
    after_s = [(20 + index) * BLOCK_S + gap_s for index in range(300)]
    blocks = [*before, *((100 + at, at, is_flagged and at == after_s[0]) for at in after_s)]
    found = counted(SampleCounter(RATE_HZ), blocks)
    gap = round(gap_s * RATE_HZ)
    assert [each.lost for each in found] == [*[0] * 20, gap, *[0] * 299]
    assert [each.first for each in found[19:22]] == [19 * BLOCK, 20 * BLOCK + gap, 21 * BLOCK + gap]
    assert [each.block.arrival_ns for each in found] == sorted(each.block.arrival_ns for each in found)


def after_a_stall(stall_s: float, apart_s: float, kept_s: float = 60.0) -> list[tuple[float, float, bool]]:
    """Return blocks of a server that hands over nothing for so long, then what it has kept, ``apart_s`` each."""
    stall_ns = 20 * BLOCK_S
    blocks: list[tuple[float, float, bool]] = []
    for index in range(1200):
        ready_s = (index + 1) * BLOCK_S
        if stall_ns < ready_s <= stall_ns + stall_s - kept_s:
            continue
        arrival_s = max(ready_s, stall_ns + stall_s) if ready_s > stall_ns else ready_s
        if blocks:
            arrival_s = max(arrival_s, blocks[-1][1] + apart_s)
        # What it says of the capture jumps with the stall and comes back as slowly as it hands over.
        blocks.append((arrival_s - BLOCK_S, arrival_s, False))
    return blocks


@pytest.mark.parametrize("stall_s", [0.21, 0.28, 1.0, 4.0])
@pytest.mark.parametrize("apart_s", [0.0, 0.001, 0.004])
def test_a_server_that_stalls_and_then_hands_over_all_that_it_holds_has_lost_nothing(
    stall_s: float, apart_s: float
) -> None:
    found = counted(SampleCounter(RATE_HZ), after_a_stall(stall_s, apart_s))
    assert [each.first for each in found] == [index * BLOCK for index in range(len(found))]
    assert len(found) > 1100
    assert not any(each.lost for each in found)


def test_a_server_that_keeps_only_the_end_of_a_stall_has_lost_its_beginning() -> None:
    found = counted(SampleCounter(RATE_HZ), after_a_stall(2.0, 0.001, kept_s=1.0))
    assert [each.lost for each in found if each.lost] == [pytest.approx(RATE_HZ, abs=2 * BLOCK)]
    assert next(index for index, each in enumerate(found) if each.lost) == 20


def test_blocks_are_held_for_a_fifth_of_a_second_where_nothing_follows_faster() -> None:
    counter = SampleCounter(RATE_HZ)
    counted(counter, [(0.0, 0.0, False)])
    held = 0
    while not counted(counter, [(0.5 + held * BLOCK_S, 0.5 + held * BLOCK_S, False)]):
        held += 1
    assert held * BLOCK_S <= 0.2 + BLOCK_S


def test_an_overrun_that_cannot_be_measured_still_costs_a_sample() -> None:
    found = counted(SampleCounter(RATE_HZ), [(100.0, 0.0, False), (100.0 + BLOCK_S, BLOCK_S, True)])
    assert [each.lost for each in found] == [0, 1]


def test_a_step_of_the_system_clock_is_not_a_loss() -> None:
    found = counted(SampleCounter(RATE_HZ), [(100.0, 0.0, False), (3700.0, BLOCK_S, False)])
    assert [each.lost for each in found] == [0, 0]
