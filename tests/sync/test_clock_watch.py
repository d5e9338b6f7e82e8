"""The watch over clocks that are no stream: what it reports, and that it starts with nothing to watch."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from sensorium.errors import ConfigError
from sensorium.sync.clocks.probe import KEY_BYTES, ProbeServer
from sensorium.sync.clocks.watch import ClockWatch
from sensorium.sync.clocks.watch_settings import WatchSettings
from sensorium.timebase import SECOND_NS, BaseReading, HostClock, VirtualClock
from sensorium.verdict import Status

KEY = bytes(range(KEY_BYTES))
UTC_NS = 1_700_000_000 * SECOND_NS


def reading(second: int, stepped_ns: int = 0) -> BaseReading:
    at_ns = second * SECOND_NS
    return BaseReading(at_ns, at_ns, at_ns + UTC_NS + stepped_ns, at_ns + UTC_NS + stepped_ns, 200)


def test_with_nothing_to_watch_the_host_is_watched() -> None:
    watch = ClockWatch("bench", WatchSettings(), VirtualClock())
    assert watch.verdicts()[0].status is Status.INSUFFICIENT
    for second in range(5):
        assert watch.step(reading(second)) == ()
    (event,) = watch.step(reading(5, stepped_ns=-SECOND_NS))
    assert event.subject == "bench"
    assert event.detail == "step: REALTIME was stepped by -1.000000 s"
    (verdict,) = watch.verdicts()
    assert verdict.status is Status.SUSPECT
    assert "capture times are unaffected" in verdict.reasons[0]
    watch.close()


def test_a_rig_that_claims_ptp_without_a_daemon_gets_a_verdict(tmp_path: Path) -> None:
    settings = WatchSettings.model_validate({"ptp": {"socket": str(tmp_path / "ptp4l"), "domain": 42}})
    watch = ClockWatch("bench", settings, VirtualClock())
    watch.step()
    ptp = watch.verdicts()[1]
    watch.close()
    assert (ptp.check, ptp.status) == ("ptp_lock", Status.FAILED)
    assert f"no ptp4l is running behind {tmp_path / 'ptp4l'}" in ptp.reasons[0]


def test_nodes_are_probed_and_judged(tmp_path: Path) -> None:
    clock = HostClock()
    server = ProbeServer("127.0.0.1", 0, KEY, clock)
    key = tmp_path / "probe.key"
    key.write_text(KEY.hex())
    key.chmod(0o600)
    node = {"name": "arm", "host": "127.0.0.1", "port": server.port, "key": str(key)}
    watch = ClockWatch("bench", WatchSettings.model_validate({"nodes": [node]}), clock)
    end_ns = clock.now_ns() + 5 * SECOND_NS
    while watch.verdicts()[1].status is not Status.OK and clock.now_ns() < end_ns:
        watch.step()
        server.wait(0.01)
        server.step()
    verdict = watch.verdicts()[1]
    watch.close()
    server.close()
    assert (verdict.subject, verdict.status) == ("arm", Status.OK), verdict.reasons


def test_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="domian"):
        WatchSettings.model_validate({"ptp": {"domian": 3}})
    node = {"name": "arm", "host": "127.0.0.1", "port": 9, "key": str(tmp_path / "none")}
    with pytest.raises(ConfigError, match="openssl rand"):
        ClockWatch("bench", WatchSettings.model_validate({"nodes": [node]}), VirtualClock())
