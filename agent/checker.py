"""The checker: asks the synchronizer for aligned sets, runs calibration checks on them at low priority.

Run by the supervisor as ``python -m sensorium.agent.checker SPEC.json``. It sees recorded frames only, never
the lossy live plane, and it can be killed at any time: recording does not wait for it.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter

from sensorium.agent.control import ControlClient, Requester
from sensorium.agent.rig import CheckOptions
from sensorium.calibration.checks import ConsecutiveJudge
from sensorium.calibration.rig_document import RigCalibration
from sensorium.calibration.stereo import check_stereo
from sensorium.drivers.frame import Encoding, StreamInfo
from sensorium.errors import CalibrationError, SensoriumError, UsageError
from sensorium.timebase import SECOND_NS, Clock, HostClock
from sensorium.verdict import Status, Verdict

NICENESS = 15
WINDOW_PAIRS = 3
_ANSWER_MS = 12_000
_INFO: TypeAdapter[StreamInfo] = TypeAdapter(StreamInfo)
_BYTES = (Encoding.MONO8, Encoding.BGR8, Encoding.RGB8)


class CheckerSpec(BaseModel):
    """What the supervisor tells the checker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sets_endpoint: str
    control_endpoint: str
    calibration: Path
    checks: tuple[CheckOptions, ...]


class SetClient(Requester):
    """Asks for aligned sets, one at a time."""

    def ask(self, streams: Sequence[str]) -> list[tuple[StreamInfo, bytes]] | None:
        """Return (info, payload) of each stream from one aligned row, or None when there was none."""
        data = self.request(json.dumps({"streams": list(streams)}).encode(), _ANSWER_MS)
        if data is None:
            return None
        reply: dict[str, Any] = msgpack.unpackb(data)
        if "error" in reply:
            return None
        return [(_INFO.validate_json(part["info"]), part["payload"]) for part in reply["streams"]]


def decode_image(info: StreamInfo, payload: bytes) -> NDArray[np.uint8]:
    """Return the grey or BGR image in a camera's payload.

    Raises:
        CalibrationError: If the encoding is not an image or the bytes do not decode.
    """
    if info.encoding in (Encoding.JPEG, Encoding.PNG):
        image = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise CalibrationError(f"an image of {info.name} does not decode; see its quality in the report")
        return np.asarray(image, np.uint8)
    if info.encoding in _BYTES:
        return np.frombuffer(payload, np.uint8).reshape(info.shape)
    if info.encoding == Encoding.MONO16:
        return (np.frombuffer(payload, "<u2").reshape(info.shape) >> 8).astype(np.uint8)
    raise CalibrationError(f"stream {info.name} has encoding {info.encoding}, which is not an image")


class StereoWatch:
    """One stereo check: collects pairs, judges windows that share no frames."""

    def __init__(self, options: CheckOptions, calibration: RigCalibration) -> None:
        self.options = options
        self._calibration = calibration
        self._pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
        self._judge = ConsecutiveJudge()
        self.due_ns = 0

    def step(self, sets: SetClient, now_ns: int) -> Verdict | None:
        """Take one more pair; return a verdict when the window is full."""
        self.due_ns = now_ns + int(self.options.every_s * SECOND_NS / WINDOW_PAIRS)
        found = sets.ask(self.options.streams)
        if found is None:
            return None
        (left_info, left), (right_info, right) = found
        self._pairs.append((decode_image(left_info, left), decode_image(right_info, right)))
        if len(self._pairs) < WINDOW_PAIRS:
            return None
        lefts, rights = zip(*self._pairs, strict=True)
        self._pairs.clear()
        checked = check_stereo(lefts, rights, self._calibration, left_info.frame_id, right_info.frame_id)
        return self._judge.judge(checked.verdict)


class Checker:
    """Runs the checks that the rig asks for, the most overdue first."""

    def __init__(self, spec: CheckerSpec, context: zmq.Context[zmq.Socket[bytes]], clock: Clock) -> None:
        self._clock = clock
        self._sets = SetClient(spec.sets_endpoint, context)
        self._control = ControlClient(spec.control_endpoint, context)
        calibration = RigCalibration.load(spec.calibration)
        self._watches = [StereoWatch(check, calibration) for check in spec.checks if check.check == "stereo"]
        self.is_stopping = False

    def step(self) -> None:
        """Run what is due; at most one pair of images."""
        watch = min(self._watches, key=lambda each: each.due_ns)
        self._clock.sleep_until(watch.due_ns)
        try:
            verdict = watch.step(self._sets, self._clock.now_ns())
        except CalibrationError as err:
            subject = "~".join(watch.options.streams)
            verdict = Verdict("stereo", subject, Status.INSUFFICIENT, (), (str(err),))
        if verdict is not None:
            try:
                self._control.ask("verdict", verdict=asdict(verdict))
            except UsageError as err:
                print(f"checker: a verdict was refused: {err}", file=sys.stderr)  # noqa: T201 - our log

    def run(self) -> None:
        while self._watches and not self.is_stopping:
            self.step()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checker until it is told to stop."""
    (spec_path,) = sys.argv[1:] if argv is None else argv
    spec = CheckerSpec.model_validate_json(Path(spec_path).read_text())
    os.nice(NICENESS)
    cv2.setNumThreads(1)
    with zmq.Context() as context:
        try:
            checker = Checker(spec, context, HostClock())

            def stop(_signal: int, _frame: FrameType | None) -> None:
                sys.exit(0)  # nothing to save

            signal.signal(signal.SIGTERM, stop)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            checker.run()
        except SensoriumError as err:
            print(f"checker: {err}", file=sys.stderr)  # noqa: T201 - the supervisor reads it
            return err.exit_code
        except SystemExit:
            context.destroy(linger=0)
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
