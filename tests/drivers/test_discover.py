"""What drivers see without opening anything."""

from pathlib import Path

import pytest

from sensorium.drivers.devices import pps
from sensorium.drivers.devices.opencv import driver as opencv
from sensorium.drivers.devices.ouster import driver as ouster
from sensorium.drivers.devices.xsens import XsensDriver
from sensorium.drivers.driver import Seen
from sensorium.drivers.links import serial_line
from sensorium.drivers.links.mdns import Offer
from sensorium.drivers.links.portaudio import alsa_inputs
from sensorium.drivers.registry import BUILT_IN, load_driver
from sensorium.timebase import SECOND_NS, HostClock


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_driver_answers_within_a_second_with_options_of_its_own(name: str) -> None:
    driver = load_driver(name)
    before_ns = HostClock().now_ns()
    found = driver.discover()
    assert HostClock().now_ns() - before_ns < SECOND_NS
    for seen in found:
        assert set(seen.options) <= set(driver.config_type.model_fields)


def test_a_camera_is_seen_once_under_its_stable_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in (0, 1):  # a UVC camera has a second node for metadata
        (tmp_path / f"usb-Maker_Cam_1-video-index{index}").symlink_to(tmp_path / f"video{index}")
    monkeypatch.setattr(opencv, "_BY_ID", tmp_path)
    node = tmp_path / "usb-Maker_Cam_1-video-index0"
    assert opencv.OpenCvDriver.discover() == [Seen(node.name, {"device": str(node)})]
    monkeypatch.setattr(opencv, "_BY_ID", tmp_path / "absent")
    assert opencv.OpenCvDriver.discover() == []


def test_only_ports_that_say_so_are_taken_for_an_imu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("usb-FTDI_FT232R_A1-if00-port0", "usb-Xsens_MTi_03800A5A-if00"):
        (tmp_path / name).touch()
    monkeypatch.setattr(serial_line, "BY_ID", tmp_path)
    imu = tmp_path / "usb-Xsens_MTi_03800A5A-if00"
    assert XsensDriver.discover() == [Seen(imu.name, {"port": str(imu)})]


def test_pulse_sources_are_seen_with_the_name_of_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in ((0, "ktimer"), (1, "pps-gpio.12.-1")):
        (tmp_path / f"pps{number}").mkdir()
        (tmp_path / f"pps{number}" / "name").write_text(f"{name}\n")
    monkeypatch.setattr(pps, "_SOURCES", tmp_path)
    assert pps.PpsDriver.discover() == [
        Seen("ktimer", {"source": str(tmp_path / "pps0")}),
        Seen("pps-gpio.12.-1", {"source": str(tmp_path / "pps1")}),
    ]


def test_a_lidar_that_answers_is_seen_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    offers = [Offer("Ouster Sensor 122150000150", "192.0.2.10")]
    monkeypatch.setattr(ouster, "find_services", lambda service, clock: offers)
    assert ouster.OusterDriver.discover() == [Seen("Ouster Sensor 122150000150", {"host": "192.0.2.10"})]


def test_sound_cards_are_seen_where_they_can_record(tmp_path: Path) -> None:
    listing = tmp_path / "pcm"
    listing.write_text(
        "00-03: HDMI 0 : HDMI 0 : playback 1\n"
        "00-00: ALC257 Analog : ALC257 Analog : playback 1 : capture 1\n"
        "01-00: USB Audio : USB Audio : capture 1\n"
        "noise\n"
    )
    assert alsa_inputs(listing) == [("hw:0,0", "ALC257 Analog"), ("hw:1,0", "USB Audio")]
    assert alsa_inputs(tmp_path / "absent") == []
