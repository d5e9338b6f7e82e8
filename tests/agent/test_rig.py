"""Rig files: every problem is one line with file and position, before anything starts."""

from pathlib import Path

import pytest

from sensorium.agent.session.rig import parse_rig
from sensorium.agent.session.run import request_for
from sensorium.errors import ConfigError, DeviceError

HERE = Path("/rigs/rig.yaml")


def problems(text: str) -> list[str]:
    with pytest.raises((ConfigError, DeviceError)) as caught:
        parse_rig(text, HERE)
    return str(caught.value).splitlines()


def test_a_typo_names_its_position_and_the_nearest_key() -> None:
    (line,) = problems("rig: r\ndevices:\n  f: {driver: ati_netft, host: 192.0.2.1, rate_hzz: 5}\n")
    assert line.startswith("/rigs/rig.yaml:3:43: ")
    assert "did you mean 'rate_hz'?" in line


def test_all_problems_are_reported_at_once() -> None:
    lines = problems(
        "rig: r\nopperator: me\ndevices:\n  a: {driver: opencvv}\n  b: {}\n  B!: {driver: opencv}\n"
        "episode: {max_s: -1, tolerance: 3}\n"
    )
    assert [line.split(": ")[0] for line in lines] == [
        "/rigs/rig.yaml:7:11",
        "/rigs/rig.yaml:7:22",
        "/rigs/rig.yaml:2:1",
        "/rigs/rig.yaml:4:7",
        "/rigs/rig.yaml:5:3",
        "/rigs/rig.yaml:6:3",
    ]
    text = "\n".join(lines)
    for hint in ("'opencv'", "'operator'", "'tolerance_ms'", "has no driver", "greater than 0"):
        assert hint in text


def test_a_device_name_that_is_given_twice_is_refused() -> None:
    (line,) = problems(
        "rig: r\ndevices:\n"
        "  f: {driver: ati_netft, host: 192.0.2.1}\n"
        "  f: {driver: ati_netft, host: 192.0.2.2}\n"
    )
    assert "devices.f is given twice (again on line 4)" in line


def test_a_wrong_type_shows_what_was_found() -> None:
    (line,) = problems("rig: r\ndevices:\n  f: {driver: ati_netft, host: 192.0.2.1, rate_hz: fast}\n")
    assert "/rigs/rig.yaml:3:43" in line
    assert "'fast'" in line


def test_a_codec_is_a_key_of_every_device_and_none_of_its_options() -> None:
    rig = parse_rig(
        "rig: r\ndevices:\n  f: {driver: sim_force, codec: none}\n  g: {driver: sim_force}\n", HERE
    )
    assert [device.codec for device in rig.devices] == ["none", None]
    assert all("codec" not in device.options for device in rig.devices)


@pytest.mark.parametrize(
    ("codec", "hint"),
    [
        ("jpgg", "did you mean 'jpeg'?"),
        ("7", "known: av1, "),
        ("jpeg:high", "level 'high' is not a number"),
    ],
)
def test_an_unknown_codec_is_refused_at_its_place(codec: str, hint: str) -> None:
    (line,) = problems(f"rig: r\ndevices:\n  f: {{driver: sim_force, codec: {codec}}}\n")
    assert line.startswith("/rigs/rig.yaml:3:26: codec '")
    assert hint in line


def test_the_wait_of_small_samples_can_be_set_but_not_below_zero() -> None:
    text = "rig: r\ndevices:\n  f: {driver: sim_force}\nrecorder: {batch_ms: %s}\n"
    assert parse_rig(text % 2.5, HERE).document.recorder.batch_ms == 2.5
    assert request_for(parse_rig(text % 0, HERE), None, None).plan.recorder.batch_ms == 0
    (line,) = problems(text % -1)
    assert line.startswith("/rigs/rig.yaml:4:12: recorder.batch_ms")


def test_broken_yaml_names_the_place() -> None:
    (line,) = problems("rig: r\ndevices: {a: [}\n")
    assert line.startswith("/rigs/rig.yaml:2:")


@pytest.mark.parametrize("text", ["", "3", "- a", "rig: r\n", "devices: {}\n", "rig: r\ndevices: 3\n"])
def test_a_file_that_is_no_rig_is_refused_without_a_traceback(text: str) -> None:
    assert all(line.startswith("/rigs/rig.yaml:") for line in problems(text))


def test_a_missing_calibration_file_is_named() -> None:
    (line,) = problems(
        "rig: r\ndevices:\n  f: {driver: ati_netft, host: 192.0.2.1}\ncalibration: nowhere.yaml\n"
    )
    assert "/rigs/nowhere.yaml does not exist" in line


def test_a_missing_device_is_named_before_anything_starts(tmp_path: Path) -> None:
    (line,) = problems("rig: r\ndevices:\n  wrist: {driver: opencv, device: /dev/v4l/by-id/nothing}\n")
    assert line.startswith("/rigs/rig.yaml:3:3: device wrist: ")
    assert "/dev/v4l/by-id/nothing" in line


def test_checks_without_a_calibration_are_refused() -> None:
    (line,) = problems(
        "rig: r\ndevices:\n  f: {driver: ati_netft, host: 192.0.2.1}\n"
        "checks: [{check: stereo, streams: [a, b]}]\n"
    )
    assert line.startswith("/rigs/rig.yaml:4:1: checks: there is no calibration")


def test_checks_left_out_are_derived_and_an_empty_list_means_none() -> None:
    head = "rig: r\ndevices:\n  f: {driver: ati_netft, host: 192.0.2.1}\n"
    assert parse_rig(head, HERE).document.checks is None
    assert parse_rig(head + "checks: []\n", HERE).document.checks == ()
