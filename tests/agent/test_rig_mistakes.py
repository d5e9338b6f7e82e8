"""The mistakes of a new rig: each answer names what is wrong, which value, and what to write or to do.

Numbers are those of the table of mistakes that users made (../shared/cases/rig_mistakes.md).
"""

import os
import pty
import re
import shlex
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import serial
from typer.testing import CliRunner
from upload_samples import EPISODE_ID, begin_spool, grant_for, seal_episode

from sensorium.agent.cli import app
from sensorium.agent.session.rig import load_rig, parse_rig
from sensorium.agent.session.rig_remarks import remarks
from sensorium.agent.session.withheld import announced
from sensorium.calibration.geometry import Intrinsics
from sensorium.calibration.rig_document import RigCalibration
from sensorium.drivers.links.device_files import require_access
from sensorium.drivers.links.serial_line import SerialLine
from sensorium.errors import ConfigError, DeviceError, SensoriumError
from sensorium.sync.consent.grants import ConsentGrant, ConsentLedger, Purpose
from sensorium.sync.consent.remedy import GrantFolder
from sensorium.sync.consent.store import ConsentStore
from sensorium.timebase import SECOND_NS, HostClock
from sensorium.uploader.stores.serving import check_address

OF_PROGRAMMERS = re.compile(
    r"Input should|valid (integer|number|string|boolean|tuple|list|dict)|pydantic|validation error|Traceback|NoneType|"
    r"\bdict\b|\btuple\b|regular expression|\[a-z0-9|Errno|Value error|internal error|cannot start any token"
)
HEAD = "rig: bench\nspool: spool\ndevices:\n"
CAMERA = HEAD + "  cam: {driver: sim_camera, size: [160, 120]%s}\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(line: str) -> tuple[int, str]:
    """Run a command as the command line does; return its exit code and what it said."""
    result = CliRunner().invoke(app, shlex.split(line))
    error = result.exception
    if isinstance(error, SensoriumError):
        return error.exit_code, f"{result.output}{error}"
    assert error is None or isinstance(error, SystemExit), repr(error)
    return result.exit_code, result.output


def refused(rig: str) -> str:
    """Return what is said of a rig file that is wrong."""
    Path("rig.yaml").write_text(rig)
    code, said = told("record rig.yaml")
    assert code in (2, 3), said
    assert told("rig check rig.yaml") == (code, said)
    return said


RIGS = {
    "1 key typo in a device": (
        CAMERA % ", rate_hzz: 30",
        ["rig.yaml:4:47", "'rate_hzz'", "did you mean 'rate_hz'?"],
    ),
    "2 driver typo": (HEAD + "  cam: {driver: opencvv}\n", ["'opencvv'", "did you mean 'opencv'?"]),
    "3 top-level key typo": (
        CAMERA % "" + "callibration: x\n",
        ["rig.yaml:5:1", "did you mean 'calibration'?"],
    ),
    "4 device given twice": (
        HEAD + "  f: {driver: sim_force}\n  f: {driver: sim_force}\n",
        ["devices.f is given twice (again on line 5)", "keep one"],
    ),
    "5 a tab": (
        "rig: bench\ndevices:\n\tcam: {driver: sim_camera}\n",
        ["rig.yaml:3:1", "a tab", "by two spaces"],
    ),
    "5 a tab behind spaces": (
        "rig: b\ndevices:\n  c:\n    driver: sim_force\n\t  noise: 1\n",
        [":5:", "a tab", "spaces"],
    ),
    "6 a unit": (
        CAMERA % ", rate_hz: 30 Hz",
        ["devices.cam.rate_hz", "a number in Hz", "'30 Hz'", "write 30"],
    ),
    "6 another unit": (CAMERA % ", rate_hz: 0.03 kHz", ["write 30"]),
    "6 a comma": (CAMERA % ", rate_hz: '29,97'", ["write 29.97"]),
    "6 a unit of time": (CAMERA % "" + "episode: {max_s: 2 min}\n", ["episode.max_s", "write 120"]),
    "6 a unit of size": (CAMERA % "" + "disk: {quota_gb: 500 MB}\n", ["disk.quota_gb", "in GB", "write 0.5"]),
    "6 percent": (
        CAMERA % "" + "checker: {cpu_share: 25%}\n",
        ["checker.cpu_share", "between 0 and 1", "write 0.25"],
    ),
    "7 a size": (
        HEAD + "  c: {driver: sim_camera, size: 640x480}\n",
        ["devices.c.size", "'640x480'", "write [640, 480]"],
    ),
    "7 a size with a sign": (HEAD + "  c: {driver: sim_camera, size: 640×480}\n", ["write [640, 480]"]),
    "7 half a size": (
        HEAD + "  c: {driver: sim_camera, size: [640]}\n",
        ["devices.c.size holds 1 value", "[640, ...]"],
    ),
    "7 a third size": (
        HEAD + "  c: {driver: sim_camera, size: [640, 480, 3]}\n",
        ["devices.c.size", "at most 2", "found 3"],
    ),
    "8 device name": (
        HEAD + "  Cam-Left: {driver: sim_camera}\n",
        ["'Cam-Left'", "small letters", "write cam_left"],
    ),
    "8 another name": (HEAD + "  2. Kamera Ö: {driver: sim_force}\n", ["'2. Kamera Ö'", "write 2_kamera"]),
    "8 rig name": (
        "rig: my bench\ndevices:\n  f: {driver: sim_force}\n",
        ["rig.yaml:1:1", "'my bench'", "write my_bench"],
    ),
    "10 camera absent": (
        HEAD + "  cam: {driver: opencv, device: /dev/video7}\n",
        ["device cam", "/dev/video7", "no such device"],
    ),
    "11 serial port absent": (
        HEAD + "  imu: {driver: xsens, port: /dev/ttyUSB0}\n",
        ["imu", "/dev/ttyUSB0", "plugged in?"],
    ),
    "17 calibration path": (
        CAMERA % "" + "calibration: nowhere.yaml\n",
        ["rig.yaml:5:1", "nowhere.yaml", "correct the path"],
    ),
    "19 operator": (CAMERA % "" + "operator: required\n", []),
    "20 store nobody serves": (
        CAMERA % "" + "store: s3://bucket/x\n",
        ["rig.yaml:5:1", "'s3://bucket/x'", "file:///absolute"],
    ),
    "20 store without a kind": (
        CAMERA % "" + "store: /var/central\n",
        ["'/var/central'", "write file:///var/central"],
    ),
    "20 store on a machine": (CAMERA % "" + "store: file://nas/central\n", ["(nas)", "three slashes"]),
    "21 store that cannot exist": (
        CAMERA % "" + "store: file:///proc/x/central\n",
        ["/proc/x/central", "choose another place"],
    ),
    "21 store in a file": (
        CAMERA % "" + "store: file:///etc/hostname/x\n",
        ["/etc/hostname is a file", "choose another place"],
    ),
    "28 reference": (
        CAMERA % "" + "episode: {reference: camm}\n",
        ["rig.yaml:5:11", "'camm'", "did you mean 'cam'?"],
    ),
    "28 check of no stream": (
        CAMERA % "" + "calibration: cal.yaml\nchecks: [{check: stereo, streams: [cam, x]}]\n",
        ["no device has a stream 'x'", "known: cam"],
    ),
    "words behind a number": (
        HEAD + "  i: {driver: xsens, port: /dev/null, baud: 115200 8N1}\n",
        ["devices.i.baud", "found '115200 8N1'", "write the number alone, such as 115200"],
    ),
    "a unit of something else": (
        CAMERA % ", rate_hz: 30 kg",
        ["devices.cam.rate_hz", "found '30 kg'", "write a number in Hz without its unit"],
    ),
    "one port twice": (
        HEAD + "  a: {driver: xsens, port: /dev/null}\n  b: {driver: xsens, port: /dev/./null}\n",
        ["rig.yaml:5:22", "devices.b.port: /dev/./null is that of a, too", "give each device its own"],
    ),
    "one UDP port twice": (
        HEAD + "  a: {driver: ouster, host: 127.0.0.1}\n  b: {driver: ouster, host: 127.0.0.2}\n",
        [
            "devices.b.lidar_port: UDP port 0.0.0.0:7502 is that of a",
            "devices.b.imu_port: UDP port 0.0.0.0:7503",
        ],
    ),
    "truth": (
        CAMERA % ", personal: nein",
        ["devices.cam.personal", "true or false", "'nein'", "write false"],
    ),
    "choice": (
        CAMERA % "" + "on_failed_check: Stopp\n",
        ["'warn', 'split' or 'stop'", "'Stopp'", "did you mean 'stop'?"],
    ),
    "number for a text": ("rig: 7\ndevices:\n  f: {driver: sim_force}\n", ["rig.yaml:1:1", 'write "7"']),
    "empty": (CAMERA % "" + "episode:\n", ["rig.yaml:5:1", "episode", "is empty", "remove episode"]),
    "value for a group": (
        CAMERA % "" + "episode: 60\n",
        ["max_s", "found 60", "write episode: {max_s: ...}"],
    ),
    "device without a group": (HEAD + "  f: sim_force\n", ["devices.f", "write f: {driver: sim_force}"]),
    "list for a group": (
        "rig: b\ndevices:\n  - f: {driver: sim_force}\n",
        ["devices", "write devices: {NAME: ...}"],
    ),
    "text for a list": (CAMERA % "" + "checks: stereo\n", ["checks", "write [stereo]"]),
    "infinite": (CAMERA % ", rate_hz: .inf", ["devices.cam.rate_hz", "finite"]),
    "below zero": (CAMERA % ", rate_hz: -5", ["devices.cam.rate_hz", "greater than 0", "-5"]),
    "no driver": (HEAD + "  f: {dirver: sim_force}\n", ["f has no driver", "'dirver'"]),
    "missing option": (HEAD + "  i: {driver: xsens}\n", ["devices.i.port is missing", "add port"]),
    "no space after a colon": (
        "rig:bench\ndevices:\n  f: {driver: sim_force}\n",
        ["a space after each key's colon"],
    ),
    "open brace": ("rig: b\ndevices: {f: {driver: sim_force}\n", ["not closed"]),
    "not a rig": ("- a\n", ["rig.yaml:1:1", "rig and devices", "sensorium rig init"]),
}


@pytest.mark.parametrize("mistake", RIGS)
def test_a_mistake_in_a_rig_file_is_named_with_its_place_and_what_to_write(mistake: str, place: Path) -> None:
    rig, parts = RIGS[mistake]
    (place / "cal.yaml").write_text("format: sensorium-calibration/1\nrig: b\n")
    if not parts:
        (place / "rig.yaml").write_text(rig)
        code, said = told("record rig.yaml")
        parts = ["bench requires an operator", "--operator NAME"]
        assert code == 2
    else:
        said = refused(rig)
    for part in parts:
        assert part in said
    assert OF_PROGRAMMERS.search(said) is None, said


def test_one_udp_port_of_two_network_cards_is_two(place: Path) -> None:
    rig = HEAD + "".join(
        f"  {name}: {{driver: ouster, host: 127.0.0.1, bind: 127.0.0.{number}}}\n"
        for number, name in enumerate("ab", 1)
    )
    assert len(parse_rig(rig, place / "rig.yaml").devices) == 2


def test_everything_that_is_wrong_is_said_at_once(place: Path) -> None:
    (place / "rig.yaml").write_text(
        "rig: bench\ndevices:\n  a: {driver: sim_camera, size: 640x480, rate_hz: 30 Hz}\n"
        "  b: {driver: opencv, device: /dev/video99}\nepisode: {reference: c}\nstore: s3://x/y\n"
    )
    code, said = told("rig check rig.yaml")
    assert code == 2
    for part in ("[640, 480]", "write 30", "/dev/video99", "episode.reference", "s3://x/y"):
        assert part in said
    assert len(said.splitlines()) == 5


OTHER_CALIBRATIONS = {
    "some YAML": "hello: world\n",
    "a list": "- a\n",
    "Kalibr": "cam0:\n  camera_model: pinhole\n",
    "OpenCV": "%YAML:1.0\n---\ncamera_matrix: !!opencv-matrix\n",
}


@pytest.mark.parametrize("kind", OTHER_CALIBRATIONS)
def test_18_another_file_as_calibration_is_named_with_the_command_that_converts_it(
    kind: str, place: Path
) -> None:
    (place / "other.yaml").write_text(OTHER_CALIBRATIONS[kind])
    said = refused(HEAD + "  f: {driver: sim_force}\ncalibration: other.yaml\n")
    for part in ("rig.yaml:5:1", "other.yaml is none of ours", "expected", "sensorium calibration convert"):
        assert part in said


COMMANDS = {
    "9 rig file missing": (
        "record absent.yaml",
        2,
        ["absent.yaml", "no such rig file", "sensorium rig init absent.yaml"],
    ),
    "9 a folder for a rig file": ("record empty", 2, ["empty: a folder", "empty/rig.yaml"]),
    "22 upload without a store": ("upload --once", 2, ["name the store", "--store file:///"]),
    "23 upload without a spool": (
        "upload --once --store file:///tmp/c --spool none",
        2,
        ["none is not a spool", "--spool"],
    ),
    "24 purpose typo": ("consent grant site:x --purpose uplaod", 2, ["'uplaod'", "did you mean 'upload'?"]),
    "25 a name as subject": ("consent grant 'Ada Lovelace'", 2, ["'Ada Lovelace'", "sub:1f0c9a"]),
    "26 a stream that is none": (
        "consent grant site:x --stream mik",
        2,
        ["--stream mik", "did you mean 'mic'?"],
    ),
    "29 status without an agent": (
        "status --spool empty",
        3,
        ["no agent records", "sensorium record RIG.yaml"],
    ),
    "30 mark without an agent": (
        "mark hello --spool empty",
        3,
        ["no agent records", "sensorium record RIG.yaml"],
    ),
    "31 verify of no episode": ("episodes verify empty", 2, ["empty is not an episode", "episodes list"]),
    "32 replay of a picture": ("replay p.png", 3, ["p.png", "a single image", "supported:"]),
    "33 replay of an empty folder": ("replay empty", 3, ["empty", "supported:"]),
    "33 replay of nothing": ("replay nothing.bag", 3, ["nothing.bag", "No such file", "supported:"]),
    "34 command typo": ("recrod rig.yaml", 2, ["'recrod'", "Did you mean 'record'?"]),
    "35 option typo": ("record rig.yaml --secnds 3", 2, ["--secnds", "--seconds"]),
    "36 seconds below zero": ("record rig.yaml --seconds -3", 2, ["'--seconds'", "at least 0.1", "-3"]),
    "36 seconds that are none": ("record rig.yaml --seconds ten", 2, ["'--seconds'", "a number", "'ten'"]),
    "37 board without its square": (
        "calibration solve empty --board 9x6 -o x.yaml",
        2,
        ["'9x6'", "9x6x0.025"],
    ),
    "a rig that is there": ("rig init rig.yaml", 2, ["rig.yaml is there already", "name another file"]),
}


@pytest.mark.parametrize("mistake", COMMANDS)
def test_a_mistake_on_the_command_line_is_named_with_what_to_say(mistake: str, place: Path) -> None:
    line, expected, parts = COMMANDS[mistake]
    (place / "empty").mkdir()
    (place / "rig.yaml").write_text(HEAD + "  f: {driver: sim_force}\n")
    cv2.imwrite(str(place / "p.png"), np.zeros((4, 4), np.uint8))
    spool, _ = begin_spool(place / "spool")
    seal_episode(spool)
    code, said = told(line)
    assert code == expected, said
    for part in parts:
        assert part in said
    assert OF_PROGRAMMERS.search(said) is None, said


PERSONAL = (
    HEAD + "  cam: {driver: sim_camera}\n  microphone: {driver: sim_microphone}\n  imu: {driver: sim_imu}\n"
)


def said_before(place: Path, rig: str, *grants: ConsentGrant) -> list[str]:
    """Return what is said before a rig is recorded under some grants."""
    store = ConsentStore(place / "spool" / "consent")
    for grant in grants:
        store.grant(grant)
    found = parse_rig(rig, place / "rig.yaml")
    folder = GrantFolder(place / "spool")
    return list(announced(found.devices, store.poll(), HostClock().utc_ns(), folder, "bench"))


def live_grant(streams: tuple[str, ...], days_ago: int = 0) -> ConsentGrant:
    now_ns = HostClock().utc_ns() - days_ago * 86_400 * SECOND_NS
    grant = grant_for(1, (Purpose.RECORD,), valid_around_ns=now_ns)
    return replace(grant, scope=replace(grant.scope, streams=streams))


def test_27_personal_streams_without_a_grant_are_named_before_with_a_command_that_works(place: Path) -> None:
    said = said_before(place, PERSONAL)
    assert said[:2] == [
        "cam will be WITHHELD: no grant covers it",
        "microphone will be WITHHELD: no grant covers it",
    ]
    (command,) = re.findall(r"`sensorium ([^`]*)`", said[2])
    assert told(command)[0] == 0
    assert said_before(place, PERSONAL) == []


def test_26_a_grant_for_a_stream_that_no_device_has_is_named(place: Path) -> None:
    said = said_before(place, PERSONAL, live_grant(("camm", "microphone")))
    assert "names stream 'camm'" in said[0]
    assert "did you mean 'cam'?" in said[0]
    assert said[1] == "cam will be WITHHELD: no grant covers it"


def test_a_grant_that_ended_yesterday_is_named_with_its_end_and_who_gave_it(place: Path) -> None:
    said = said_before(place, PERSONAL, live_grant(("*",), days_ago=21))
    assert re.search(r"cam will be WITHHELD: grant 01J0+1 of sub:a for it ended at 20\d\d-", said[0])
    assert "if sub:a agrees: `sensorium consent grant sub:a " in said[2]


def test_a_camera_called_harmless_and_a_pause_are_named(place: Path) -> None:
    rig = PERSONAL.replace("sim_camera}", "sim_camera, personal: no}")
    ConsentStore(place / "spool" / "consent").pause(source="test")
    said = said_before(place, rig)
    assert "cam is recorded and uploaded without consent" in said[0]
    assert "personal: false" in said[0]
    assert "sensorium resume" in said[1]


def test_records_that_cannot_be_trusted_are_named(place: Path) -> None:
    rig = parse_rig(PERSONAL, place / "rig.yaml")
    ledger = ConsentLedger(fault="the log is damaged")
    said = announced(rig.devices, ledger, HostClock().utc_ns(), GrantFolder(place / "spool"), "bench")
    assert said == ("nothing personal will be stored: the log is damaged",)


def test_a_first_rig_can_be_recorded_as_it_is(place: Path) -> None:
    assert told("rig init new/rig.yaml")[0] == 0
    rig = load_rig(place / "new" / "rig.yaml")
    assert rig.devices
    code, said = told("rig check new/rig.yaml")
    assert (code, "can be recorded" in said) == (0, True)


def test_a_store_that_can_be_made_is_accepted_and_nothing_is_left_of_the_question(place: Path) -> None:
    check_address((place / "a" / "b").as_uri(), will_be_written=True)
    assert list(place.iterdir()) == []
    (place / "closed").mkdir(mode=0o500)
    if os.geteuid() != 0:  # root may write anywhere
        with pytest.raises(ConfigError, match="cannot be written"):
            check_address((place / "closed").as_uri(), will_be_written=True)


def test_an_id_is_what_an_episode_is_asked_for_by(place: Path) -> None:
    spool, _ = begin_spool(place / "spool")
    seal_episode(spool)
    code, said = told(f"consent grant site:x --for {EPISODE_ID[:-1]}2")
    assert (code, f"did you mean {EPISODE_ID}?" in said) == (2, True)


def remarked(place: Path, rig: str) -> list[str]:
    (place / "rig.yaml").write_text(rig)
    return list(remarks(load_rig(place / "rig.yaml")))


def test_a_calibration_of_another_rig_or_of_another_size_is_named(place: Path) -> None:
    rig = HEAD + "  cam: {driver: sim_camera, size: [320, 240]}\ncalibration: cal.yaml\n"
    calibration = RigCalibration(
        cameras={"cam0": Intrinsics("pinhole", 640, 480, 500.0, 500.0, 320.0, 240.0)}
    )
    calibration.save(place / "cal.yaml")
    (said,) = remarked(place, rig)
    assert "knows cam0 and none of the devices cam: it is of another rig" in said
    RigCalibration(cameras={"cam": calibration.cameras["cam0"]}).save(place / "cal.yaml")
    (said,) = remarked(place, rig)
    assert "cam is asked for 320x240" in said
    assert "write size: [640, 480]" in said
    assert remarked(place, rig.replace("[320, 240]", "[640, 480]")) == []


def test_ptp_without_its_daemon_is_named(place: Path) -> None:
    (said,) = remarked(place, CAMERA % "" + "clocks: {ptp: {socket: nowhere/ptp4l}}\n")
    assert "clocks.ptp.socket: nowhere/ptp4l does not exist" in said


@pytest.mark.parametrize(
    ("spool", "says"),
    [("/proc/spool", "nothing can be made in /proc"), ("/etc/hostname", "/etc/hostname is a file")],
)
def test_a_spool_that_cannot_be_is_named_before_anything_starts(spool: str, says: str, place: Path) -> None:
    (place / "rig.yaml").write_text(f"rig: b\nspool: {spool}\ndevices:\n  f: {{driver: sim_force}}\n")
    for command in ("record", "rig check"):
        code, said = told(f"{command} rig.yaml")
        assert code == 2
        assert f"spool {spool}" in said
        assert says in said
        assert "choose another place" in said


def test_a_reference_that_a_recording_has_not_is_named_before_its_replay(place: Path) -> None:
    spool, _ = begin_spool(place / "spool")
    episode = seal_episode(spool)
    code, said = told(f"replay {episode} --reference lidr --spool out")
    assert (code, "did you mean 'lidar'?" in said) == (2, True), said


def test_a_device_file_that_this_user_may_not_use_is_named_with_its_group(place: Path) -> None:
    path = place / "ttyUSB0"
    path.touch(mode=0o000)
    if os.access(path, os.R_OK):
        pytest.skip("this user may use every file")
    with pytest.raises(DeviceError, match=r"may not use .*ttyUSB0; it belongs to .*"):
        require_access("Xsens", path)


def test_a_port_that_another_program_uses_is_named(place: Path) -> None:
    ours, theirs = pty.openpty()
    name = os.ttyname(theirs)
    with serial.Serial(name, exclusive=True):
        line = SerialLine(name, 115200, "Xsens", HostClock())
        with pytest.raises(
            DeviceError, match=f"{name} cannot be opened: another program uses it; `fuser {name}`"
        ):
            line.open()
    os.close(ours)
    os.close(theirs)
