"""Devices that claim to be synchronised, against their arrivals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sensorium.drivers.frame import ClockKind, DeviceClock, Encoding, Frame, Latency, Modality, StreamInfo
from sensorium.sync.clocks.claims import judge_claim, utc_reference
from sensorium.sync.clocks.tracker import StreamTracker
from sensorium.verdict import Status, Verdict

HOUR_US = 3_600_000_000
UTC_MINUS_HOST_NS = 1_700_000_000 * 10**9


def judge(
    device_us: np.ndarray,
    host_ns: np.ndarray,
    modulus: int | None,
    utc_minus_host_ns: int,
    announced_s: int | None = None,
) -> Verdict:
    clock = DeviceClock(ClockKind.PTP, 1000, 1, modulus)
    info = StreamInfo("lidar", Modality.LIDAR, Encoding.JPEG, 10, "l", clock, Latency(0, 1_000_000, 10**9))
    tracker = StreamTracker(info)
    for at in range(host_ns.size):
        tracker.update(Frame("lidar", at, 1, device_us[at : at + 1], host_ns[at : at + 1], b""))
    model, line = tracker.model, tracker.line
    assert model is not None
    assert line is not None
    reference = replace(utc_reference(utc_minus_host_ns, int(host_ns[-1])), utc_offset_s=announced_s)
    return judge_claim(info, model, line, reference)


def stamps(ahead_s: float, modulus: int | None, skew_ppm: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    host_ns = 10**12 + np.arange(400) * 100_000_000
    utc_us = (host_ns + UTC_MINUS_HOST_NS) // 1000 + round(ahead_s * 1e6)
    utc_us += np.rint(np.arange(400) * 0.1 * skew_ppm).astype(np.int64)
    arrival = host_ns + random.exponential(3e5, 400).astype(np.int64)
    return (utc_us if modulus is None else utc_us % modulus), arrival


@pytest.mark.parametrize("modulus", [None, HOUR_US])
def test_a_synchronised_device_is_believed(modulus: int | None) -> None:
    device, host = stamps(0.0, modulus)
    assert judge(device, host, modulus, UTC_MINUS_HOST_NS).status is Status.OK


@pytest.mark.parametrize(
    ("ahead_s", "modulus", "word"),
    [(37, None, "37 s"), (1, None, "1 s"), (3600, None, "hour"), (1531.18, HOUR_US, "not synchronised")],
)
def test_a_wrong_clock_is_named(ahead_s: float, modulus: int | None, word: str) -> None:
    device, host = stamps(ahead_s, modulus)
    verdict = judge(device, host, modulus, UTC_MINUS_HOST_NS)
    assert verdict.status is Status.FAILED
    assert word in " ".join(verdict.reasons)


@pytest.mark.parametrize(
    ("ahead_s", "announced_s", "said"),
    [
        (38, 38, "TAI is taken for UTC (38 s)|UTC is taken for TAI (38 s)"),
        (37, None, "nobody announces TAI - UTC, 37 s is assumed"),
        (37, 38, "whole seconds"),
    ],
)
def test_the_leap_seconds_are_those_that_the_grandmaster_announces(
    ahead_s: int, announced_s: int | None, said: str
) -> None:
    device, host = stamps(ahead_s, None)
    reasons = " ".join(judge(device, host, None, UTC_MINUS_HOST_NS, announced_s).reasons)
    assert any(each in reasons for each in said.split("|")), reasons


def test_a_free_running_clock_is_named_even_while_it_is_right() -> None:
    device, host = stamps(0.0, None, skew_ppm=40)
    verdict = judge(device, host, None, UTC_MINUS_HOST_NS)
    assert verdict.status is Status.FAILED
    assert "free-running" in " ".join(verdict.reasons)


def test_the_real_velodyne_is_found_unsynchronised(shared_data: Path) -> None:
    """Nobody set its clock: 1531.18 s off the host's hour (shared/data/README.md)."""
    data = np.load(shared_data / "clock" / "lidar_oneway_vlp16.npz")
    verdict = judge(data["dev_us"], data["host_ns"], HOUR_US, 0)
    assert verdict.status is Status.FAILED
    assert abs(verdict.quantities[0].value) == pytest.approx(1531.18e9, abs=0.01e9)
