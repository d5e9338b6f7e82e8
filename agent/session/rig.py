"""The rig file: one YAML document, validated to the last key before anything starts.

Every problem becomes one line with file, line and column; unknown keys name the nearest known one.
What only some rigs ask for is loaded when one does: who mistyped a key waits for nothing else.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, model_validator

from sensorium.agent.session.check_kinds import watched_kind
from sensorium.agent.session.rig_fitness import taken_twice, unfit
from sensorium.agent.session.rig_words import explained
from sensorium.agent.session.yaml_positions import Location, PositionedYaml, Problem
from sensorium.bounded_yaml import read_yaml_text
from sensorium.drivers.driver import Driver, DriverConfig
from sensorium.drivers.frame import STREAM_NAME
from sensorium.drivers.registry import load_driver
from sensorium.errors import CalibrationError, ConfigError, DeviceError
from sensorium.masking import masked, secrets_of
from sensorium.sync.clocks.triggered import TriggerSettings
from sensorium.sync.clocks.watch_settings import NodeSettings, WatchSettings
from sensorium.sync.episode.facts import SessionFacts
from sensorium.sync.recording.press import PauseSettings
from sensorium.sync.recording.spec import DiskSettings, RecorderSettings, ThinkingSettings
from sensorium.wording import nearest, plain_name

if TYPE_CHECKING:
    from sensorium.calibration.targets import Target

REQUIRED = "required"
"""As ``operator``: whoever records has to say who they are."""

_ENTRY_KEYS = ("driver", "codec")
"""Keys of a device's entry that are not its driver's options."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EpisodeOptions(_Strict):
    """When episodes end and what their streams are aligned on.

    Attributes:
        max_s: A new episode begins after so long; absent = when it is stopped.
        max_bytes: A new episode begins once one is so large.
        reference: The stream whose samples are the ticks that all others are matched with; absent = a camera.
        tolerance_ms: No match is further from its tick than this.
        start: Record at once, or wait for `sensorium start`.
    """

    max_s: PositiveFloat | None = None
    max_bytes: int | None = Field(default=None, gt=0)
    reference: str | None = None
    tolerance_ms: PositiveFloat = 10.0
    start: Literal["immediately", "manual"] = "immediately"


class CheckOptions(_Strict):
    """One calibration check that runs while recording.

    Attributes:
        check: Which kind; :mod:`sensorium.agent.session.check_kinds` lists them.
        streams: What it checks, such as two cameras, or a LiDAR and an IMU (``ground_gravity``).
        every_s: A result about so often; None = as often as is usual for this kind.
    """

    check: str
    streams: tuple[str, ...]
    every_s: PositiveFloat | None = None

    @model_validator(mode="after")
    def _is_of_a_kind(self) -> "CheckOptions":
        try:
            kind = watched_kind(self.check)
        except ConfigError as err:
            raise ValueError(str(err)) from err
        if len(self.streams) != len(kind.parts):
            parts = " and ".join(part.name for part in kind.parts)
            raise ValueError(f"check {self.check} asks for {len(kind.parts)} streams: {parts}")
        return self


class BoardOptions(_Strict):
    """The board that the checks at start are made with.

    Attributes:
        pattern: ``COLUMNSxROWSxSQUARE``: inner corners of a chessboard, squares of a ChArUco board; metres.
        size: ``WIDTHxHEIGHT`` of the whole board, m; for LiDARs.
        marker_m: Side of a ChArUco marker; None = 0.75 squares.
        seconds: So long somebody has to show it.
    """

    pattern: str
    type: Literal["chessboard", "charuco"] = "chessboard"
    size: str | None = None
    marker_m: PositiveFloat | None = None
    dictionary: str = "DICT_5X5_1000"
    seconds: PositiveFloat = 60.0

    @model_validator(mode="after")
    def _is_a_board(self) -> "BoardOptions":
        try:
            self.target()
        except CalibrationError as err:
            raise ValueError(str(err)) from err
        return self

    def target(self) -> "Target":
        """Return the board."""
        from sensorium.calibration.targets import parse_board  # OpenCV: only for rigs that have a board

        return parse_board(self.pattern, self.type, self.marker_m, self.dictionary, self.size)


class CheckerOptions(_Strict):
    """How much the checks may cost: a share of one core, held over ``over_s``."""

    cpu_share: float = Field(default=0.25, gt=0, le=1)
    over_s: PositiveFloat = 60.0


class RigDocument(SessionFacts):
    """The keys of a rig file; ``devices`` entries carry their driver's options beside ``driver`` and ``codec``.

    What only is handed on to the manifest (operator, task, ...) are keys of ``SessionFacts``.

    Attributes:
        episode: When episodes end, what they are aligned on.
        clocks: Clocks to watch beside the streams': PTP, chrony, remote nodes.
        triggers: Pulses that drive cameras.
        checks: Calibration checks while recording; absent = every pair that the calibration joins, [] = none.
        checks_at_start: Checks that the operator shows a board for, before the session.
        board: That board.
        checker: What the checks may cost.
        recorder: Memory, and what a crash may cost.
        disk: What the spool may take.
        pause: A switch that pauses everything personal.
        thinking: What clock estimation may cost.
        on_failed_check: After a failed calibration check: go on, begin an episode, or record no more.
        calibration: File with what is known of the sensors' places and lenses.
        consent: Folder of the grants; absent = the spool's own.
        spec: File that says what an episode must contain.
        spool: Folder that episodes are recorded into.
        store: Where episodes are delivered, as a URL.
        upload: Deliver while recording; else `sensorium upload` does.
    """

    rig: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    devices: dict[str, dict[str, Any]] = Field(min_length=1)
    episode: EpisodeOptions = EpisodeOptions()
    clocks: WatchSettings = WatchSettings()
    triggers: tuple[TriggerSettings, ...] = ()
    checks: tuple[CheckOptions, ...] | None = None
    checks_at_start: Literal["board"] | None = None
    board: BoardOptions | None = None
    checker: CheckerOptions = CheckerOptions()
    recorder: RecorderSettings = RecorderSettings()
    disk: DiskSettings = DiskSettings()
    pause: PauseSettings | None = None
    thinking: ThinkingSettings = ThinkingSettings()
    on_failed_check: Literal["warn", "split", "stop"] = "warn"
    calibration: Path | None = None
    consent: Path | None = None
    spec: Path | None = None
    spool: Path | None = None
    store: str | None = None
    upload: bool = True

    @property
    def facts(self) -> SessionFacts:
        """What people say about the recording; an operator that is only required is nobody yet."""
        said = {name: getattr(self, name) for name in SessionFacts.model_fields}
        return SessionFacts(**{**said, "operator": "" if self.operator == REQUIRED else self.operator})


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the rig with its driver class and validated options.

    Attributes:
        codec: What its streams are packed with, as written; None = what its options ask for, then what is exact
            and pays.
    """

    name: str
    driver: str
    driver_type: type[Driver[Any]]
    config: DriverConfig
    options: Mapping[str, Any]
    codec: str | None = None


@dataclass(frozen=True, slots=True)
class Rig:
    """A validated rig: paths are absolute, drivers are loaded, nothing is opened."""

    path: Path | None
    document: RigDocument
    devices: tuple[Device, ...]


def load_rig(path: Path) -> Rig:
    """Return the rig described by the YAML file.

    Raises:
        ConfigError: With one line per problem: ``file:line:column: what; what to do``.
        DeviceError: If a required device is plainly missing.
    """
    return parse_rig(read_rig(path), path)


def read_rig(path: Path) -> str:
    """Return the text of a rig file.

    Raises:
        ConfigError: If it cannot be read; a file that is not there is sought among its neighbours.
    """
    try:
        return read_yaml_text(path)
    except FileNotFoundError as err:
        rigs = {each.stem: each.name for each in sorted(path.parent.glob("*.y*ml"))}
        near = difflib.get_close_matches(path.stem, rigs, n=1)
        there = f"; in that folder lie: {', '.join([*rigs.values()][:6])}" if rigs else ""
        there = f"; did you mean {path.with_name(rigs[near[0]])}?" if near else there
        raise ConfigError(
            f"{path}: there is no such rig file{there}; `sensorium rig init {path}` writes a first one"
        ) from err
    except IsADirectoryError as err:
        raise ConfigError(f"{path}: a folder; name the rig file in it, such as {path / 'rig.yaml'}") from err
    except OSError as err:
        raise ConfigError(
            f"{path}: the rig file cannot be read: {err.strerror}; look at its permissions"
        ) from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"{path}: the rig file is not text in UTF-8; save it as such") from err


def parse_rig(text: str, path: Path, *, everything: bool = False) -> Rig:
    """Return the rig in ``text``; ``path`` anchors relative paths and names the file in errors.

    Args:
        everything: Ask the devices even where the file is wrong, to say all problems at once.
    """
    found = PositionedYaml(text, path)
    if not isinstance(found.data, dict):
        raise ConfigError(
            f"{path}:1:1: a rig file is a mapping with the keys rig and devices; "
            "`sensorium rig init` writes a first one"
        )
    rig, problems = _validate(found.data, path, found)
    problems = [*found.problems, *problems]
    missing = _missing_devices(rig.devices) if everything or not problems else []
    lines = "\n".join(found.line(where, what) for where, what in (*problems, *missing))
    if problems:
        raise ConfigError(masked(lines, secrets_of(found.data)))
    if missing:
        raise DeviceError(masked(lines, secrets_of(found.data)))
    return rig


def _validate(data: dict[str, Any], path: Path, text: PositionedYaml) -> tuple[Rig, list[Problem]]:
    """Return the rig as far as it is right, and what is not."""
    problems: list[Problem] = []
    document = None
    try:
        document = RigDocument.model_validate(data)
    except ValidationError as err:
        problems += explained(err, RigDocument, (), text)
    devices = []
    entries = data.get("devices")
    entries = entries if isinstance(entries, dict) else {}
    names = list(entries)
    for name in names:
        device = _device(name, entries[name], problems, text)
        if device is not None:
            devices.append(device)
    if document is None:
        document = RigDocument.model_construct()
        return Rig(path, document, tuple(devices)), problems
    rig = _anchored(Rig(path, document, tuple(devices)), names, problems)
    return rig, problems


def _anchored(rig: Rig, names: Sequence[str], problems: list[Problem]) -> Rig:
    """Return the rig with absolute paths; note what of its keys does not go together."""
    document, path = rig.document, rig.path
    assert path is not None, "it was read from there"
    base = path.parent.resolve()
    paths = ("calibration", "consent", "spec", "spool")
    anchored = {key: base / getattr(document, key) for key in paths if getattr(document, key) is not None}
    for key in ("calibration", "spec"):
        if key in anchored and not anchored[key].is_file():
            problems.append(
                ((key,), f"{key}: {anchored[key]} does not exist; correct the path or remove the key")
            )
    if document.checks and "calibration" not in anchored:
        what = "checks: there is no calibration to hold the sensors against; add calibration: FILE"
        problems.append((("checks",), what))
    problems += _at_start_problems(document, "calibration" in anchored)
    if "calibration" in anchored and anchored["calibration"].is_file():
        from sensorium.calibration.rig_document import RigCalibration

        try:
            RigCalibration.load(anchored["calibration"])
        except CalibrationError as err:
            problems.append((("calibration",), f"calibration: {err}"))
    clocks = _anchored_clocks(document.clocks, base, names, problems)
    drivers = [device.driver for device in rig.devices]
    problems += [*unfit(document, names, drivers), *taken_twice(rig.devices)]
    if document.triggers and "replay" not in drivers:  # it names its streams
        from sensorium.sync.recording.triggers import check_streams

        for index, problem in check_streams(document.triggers, names):
            problems.append((("triggers", index), f"triggers: {problem}"))
    pause = document.pause
    if pause is not None:
        pause = pause.model_copy(update={"file": base / pause.file})
    update = {**anchored, "clocks": clocks, "pause": pause}
    return replace(rig, document=document.model_copy(update=update))


def _at_start_problems(document: RigDocument, has_calibration: bool) -> list[Problem]:
    """Return what the check at start lacks."""
    if document.checks_at_start is None:
        if document.board is None:
            return []
        return [(("board",), "board: nothing uses it; add checks_at_start: board")]
    if document.board is None:
        what = "checks_at_start: board asks for the board's measures; add board: {pattern: 9x6x0.05}"
        return [(("checks_at_start",), what)]
    if not has_calibration:
        what = "checks_at_start: there is no calibration to hold the sensors against; add calibration: FILE"
        return [(("checks_at_start",), what)]
    return []


def _anchored_clocks(
    clocks: WatchSettings, base: Path, devices: Sequence[str], problems: list[Problem]
) -> WatchSettings:
    """Return the settings with absolute paths; note keys that cannot be used and devices that do not exist."""
    nodes: list[NodeSettings] = []
    for index, node in enumerate(clocks.nodes):
        where: Location = ("clocks", "nodes", index)
        anchored = node.model_copy(update={"key": base / node.key})
        nodes.append(anchored)
        from sensorium.sync.clocks.probe import load_key

        try:
            load_key(anchored.key)
        except ConfigError as err:
            problems.append(((*where, "key"), str(err)))
        for name in node.devices:
            if name not in devices:
                what = f"clocks: node {node.name} names device {name!r}; {nearest(name, devices)}"
                problems.append(((*where, "devices"), what))
    return clocks.model_copy(update={"nodes": tuple(nodes)})


def _device(name: str, entry: Any, problems: list[Problem], text: PositionedYaml) -> Device | None:
    where: Location = ("devices", name)
    if not STREAM_NAME.fullmatch(name):
        like = plain_name(masked(name))  # an address in the place of a name may hold a login
        fix = f"; write {like}" if like else ""
        rule = "a device's name has small letters, digits and _ only, at most 48"
        problems.append((where, f"device name {name!r}: {rule}{fix}"))
        return None
    if not isinstance(entry, dict):
        return None  # already reported by the document's own validation
    if "driver" not in entry:
        problems.append(
            (where, f"device {name} has no driver; add one, e.g. driver: opencv{_other_key(entry)}")
        )
        return None
    options = {key: value for key, value in entry.items() if key not in _ENTRY_KEYS}
    codec = _codec(entry, (*where, "codec"), problems)
    try:
        driver_type = load_driver(str(entry["driver"]))
    except ConfigError as err:
        problems.append(((*where, "driver"), str(err)))
        return None
    try:
        config = driver_type.config_type.model_validate(options)
    except ValidationError as err:
        problems.extend(explained(err, driver_type.config_type, where, text, _ENTRY_KEYS))
        return None
    return Device(name, str(entry["driver"]), driver_type, config, options, codec)


def _other_key(entry: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches("driver", entry, n=1, cutoff=0.6)
    return f" (did you mean it by {near[0]!r}?)" if near else ""


def _codec(entry: dict[str, Any], where: Location, problems: list[Problem]) -> str | None:
    """Return the entry's codec as written; whether it fits the streams shows when they are declared."""
    if "codec" not in entry:
        return None
    from sensorium.drivers.payloads.choice import parse_codec

    try:
        parse_codec(str(entry["codec"]))
    except ConfigError as err:
        problems.append((where, str(err)))
    return str(entry["codec"])


def _missing_devices(devices: Sequence[Device]) -> list[Problem]:
    missing: list[Problem] = []
    for device in devices:
        try:
            device.driver_type.check(device.config)
        except (DeviceError, ConfigError) as err:
            if isinstance(err, DeviceError) and not device.config.required:
                continue  # the others record; its driver says why it does not, and tries again
            missing.append((("devices", device.name), f"device {device.name}: {err}"))
    return missing
