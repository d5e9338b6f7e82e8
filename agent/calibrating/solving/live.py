"""Runs a rig while somebody shows it a board, and says what to show next."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq
from pydantic import TypeAdapter
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sensorium.agent.calibrating.image_files import write_image
from sensorium.agent.calibrating.shots import Sample, decoded_cloud, decoded_image
from sensorium.agent.calibrating.showing import refusal_now
from sensorium.agent.calibrating.solving.guide import Guide
from sensorium.agent.calibrating.solving.material import STILL_S, Image, Moment, Points, Shown
from sensorium.agent.calibrating.watching.service import SetClient
from sensorium.agent.session.control import ControlClient
from sensorium.agent.session.rig import Rig
from sensorium.agent.session.run import Companion, request_for, run_session
from sensorium.drivers.frame import Modality, StreamInfo
from sensorium.drivers.roles import Role, has_role
from sensorium.errors import CalibrationError, ConsentError, SensoriumError
from sensorium.sync.episode.reader import Episode
from sensorium.sync.quality.passport import CONSENT_REASON
from sensorium.sync.thinking.sets import AlignedSet, KeptFrame, SetRequest
from sensorium.timebase import SECOND_NS, Clock, HostClock

PICTURE_NS = SECOND_NS
_LINE_NS = 2 * SECOND_NS
_WAIT_S = 0.25
_INFO: TypeAdapter[StreamInfo] = TypeAdapter(StreamInfo)


def moment_of(found: AlignedSet, label: str) -> Moment:
    """Return the moment in an aligned set whose cameras and LiDARs were asked for beside its member.

    Raises:
        SensoriumError: If a frame does not decode.
    """
    by_stream: dict[str, list[KeptFrame]] = {}
    for kept in (*found.members, *found.beside):
        by_stream.setdefault(kept.info.name, []).append(kept)
    images: dict[str, Shown] = {}
    sweeps: dict[str, Any] = {}
    for frames in by_stream.values():
        info = frames[0].info
        near = min(frames, key=lambda kept: abs((kept.first_ns + kept.last_ns) // 2 - found.tick_ns))
        if info.modality is Modality.CAMERA:
            beside = [kept for kept in frames if kept.first_ns != near.first_ns]
            images[info.frame_id] = Shown(
                decoded_image(info, bytes(near.frame.payload)),
                tuple(
                    (
                        (kept.first_ns - near.first_ns) / SECOND_NS,
                        partial(decoded_image, info, bytes(kept.frame.payload)),
                    )
                    for kept in beside[:2]
                ),
            )
        elif has_role(info, Role.SWEEP):
            sweeps[info.frame_id] = _Sweep(near)
    return Moment(label, images, sweeps)


def _image(shown: Shown) -> Image:
    return shown.image


class _Sweep:
    def __init__(self, kept: KeptFrame) -> None:
        self._kept = kept

    def __call__(self) -> Points:
        sample = Sample(bytes(self._kept.frame.payload), self._kept.first_ns)
        return decoded_cloud(self._kept.info, sample).points


class LiveGuide:
    """A companion of a session: asks for aligned sets, feeds a guide, shows what it says.

    The session asks :attr:`is_done` and ends when it is.

    Args:
        picture: Where the coverage goes, rewritten every second; None = nowhere.
        is_silent: Show nothing (``--json``).
        deadline_ns: Be done by then (host ns) whatever was seen, also if no device ever delivers; None = never.
        consent: Folder of the grants that pictures need; None only where none is drawn.
    """

    def __init__(
        self,
        guide: Guide,
        clock: Clock,
        picture: Path | None,
        is_silent: bool,
        deadline_ns: int | None = None,
        consent: Path | None = None,
    ) -> None:
        self.guide = guide
        self.is_done = False
        self.fault = ""
        self._clock = clock
        self._deadline_ns = deadline_ns
        self._picture = picture
        self._consent = consent
        self._cameras: list[StreamInfo] = []
        self._console = Console(stderr=True, markup=False, emoji=False)
        self._is_silent = is_silent
        self._live: Live | None = None
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._endpoints = ("", "")
        self._said = ""
        self._next_line_ns = self._next_picture_ns = 0
        self._turn = 0
        self._recent: list[tuple[int, Moment]] = []

    def start(self, sets_endpoint: str, control_endpoint: str) -> None:
        """Begin to ask; called once the session's processes are started."""
        self._endpoints = (sets_endpoint, control_endpoint)
        if not self._is_silent and self._console.is_terminal:
            self._live = Live(Text("waiting for images"), console=self._console, refresh_per_second=4)
            self._live.start()
        self._thread = threading.Thread(target=self._run, name="guide", daemon=True)
        self._thread.start()

    def __enter__(self) -> "LiveGuide":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        if self._thread is not None:
            self._thread.join(10.0)
        if self._live is not None:
            self._live.stop()

    def _run(self) -> None:
        with zmq.Context() as context:
            sets, control = SetClient(self._endpoints[0], context), ControlClient(self._endpoints[1], context)
            start_ns = self._clock.now_ns()
            try:
                while not self._ending.is_set() and not self.is_done:
                    self._step(sets, control, start_ns)
                    if self._deadline_ns is not None and self._clock.now_ns() > self._deadline_ns:
                        self.is_done = True
            except SensoriumError as err:
                self.fault, self.is_done = str(err), True
            finally:
                sets.close()
                control.close()

    def _step(self, sets: SetClient, control: ControlClient, start_ns: int) -> None:
        cameras, lidars = self._streams(control)
        if not cameras:
            self._ending.wait(_WAIT_S)
            return
        # Each camera in turn is the middle of a set; what lies around it comes beside.
        member = cameras[self._turn % len(cameras)]
        self._turn += 1
        found = sets.ask(SetRequest((member,), (*cameras, *lidars)))
        now_ns = self._clock.now_ns()
        if isinstance(found, str):
            self._show(now_ns, f"no images: {found}")
            return
        self.guide.take(
            self._with_earlier(moment_of(found, f"{(now_ns - start_ns) / SECOND_NS:.1f} s"), found.tick_ns)
        )
        self._show(now_ns, self.guide.advice())
        if self._picture is not None and now_ns >= self._next_picture_ns:
            self._next_picture_ns = now_ns + PICTURE_NS
            self._draw()
        if self.guide.is_enough:
            self._draw()
            self.is_done = True

    def _with_earlier(self, moment: Moment, tick_ns: int) -> Moment:
        """Return the moment with earlier images beside its own: a sweep takes longer than an image."""
        enough_ns = tick_ns - int(STILL_S * SECOND_NS)
        before = next((each for each in reversed(self._recent) if each[0] <= enough_ns), None)
        self._recent = [each for each in self._recent if each[0] > tick_ns - SECOND_NS] + [(tick_ns, moment)]
        if before is None:
            return moment
        before_s, earlier = (before[0] - tick_ns) / SECOND_NS, before[1].images
        images = {
            name: replace(shown, beside=(*shown.beside, (before_s, partial(_image, earlier[name]))))
            if name in earlier
            else shown
            for name, shown in moment.images.items()
        }
        return replace(moment, images=images)

    def _streams(self, control: ControlClient) -> tuple[list[str], list[str]]:
        reply = control.ask("streams", timeout_ms=2000)
        if reply is None or reply["episode"] is None:
            return [], []
        infos = [_INFO.validate_python(found) for found in reply["streams"]]
        self._cameras = [info for info in infos if info.modality is Modality.CAMERA]
        return [info.name for info in self._cameras], [
            info.name for info in infos if has_role(info, Role.SWEEP)
        ]

    def _draw(self) -> None:
        if self._picture is None or self._consent is None:
            return
        refusal = refusal_now(self._cameras, self._consent)
        if refusal:
            raise ConsentError(refusal)
        image = self.guide.picture()
        if image is not None:
            write_image(image, self._picture)

    def _show(self, now_ns: int, advice: str) -> None:
        if self._is_silent:
            return
        rows = self.guide.rows()
        if self._live is not None:
            self._live.update(_view(rows, advice, self._picture))
        elif advice != self._said or now_ns >= self._next_line_ns:
            self._next_line_ns = now_ns + _LINE_NS
            known = [f"{name} {views} views {progress}: " for name, _, views, progress in rows]
            self._console.print(
                f"{', '.join(known)}{advice}".replace(": ,", ","), highlight=False, soft_wrap=True
            )
        self._said = advice


def record_live(
    rig: Rig,
    seconds: float,
    folder: Path,
    task: str,
    show: Callable[[str], None],
    companion: Companion | None,
) -> Path:
    """Record a rig into a folder, under its consent, without checks or upload; return the episode.

    Args:
        seconds: At most so long; less if the companion is done, or at Ctrl-C.

    Raises:
        CalibrationError: If nothing was recorded.
    """
    request = request_for(rig, None, seconds)
    facts = request.plan.facts.model_copy(update={"task": task})
    whole = {"facts": facts, "start": "immediately", "max_s": None, "max_bytes": None}
    plan = request.plan.model_copy(update=whole)
    request = replace(request, spool=folder, checks=(), store=None, uploads_in_background=False, plan=plan)
    show(f"recording {rig.path} for {'up to ' if companion is not None else ''}{seconds:g} s")
    result = run_session(request, HostClock(), companion=companion)
    if not result.episodes:
        raise CalibrationError(f"nothing was recorded: {'; '.join(result.problems) or 'no stream came'}")
    _require_consent(result.episodes[-1], rig)
    return result.episodes[-1]


def grants_of(rig: Rig) -> Path:
    """Return the folder of the grants that a rig is recorded under."""
    return request_for(rig, None, None).consent


def _require_consent(path: Path, rig: Rig) -> None:
    """Say so where cameras were not recorded because nobody allowed it.

    Raises:
        ConsentError: Naming the cameras and what to do.
    """
    with Episode(path) as episode:
        records = episode.manifest.streams if episode.manifest is not None else ()
    refused = [
        record.info.name
        for record in records
        if record.info.modality is Modality.CAMERA
        and not sum(balance.recorded for balance in record.balances.values())
        and any(
            reason.startswith(CONSENT_REASON)
            for balance in record.balances.values()
            for reasons in balance.dropped.values()
            for reason in reasons
        )
    ]
    if refused:
        raise ConsentError(
            f"nothing of {', '.join(refused)} was recorded: no grant covers it. Give one with `sensorium consent "
            f"grant SUBJECT --consent FOLDER` (consent: of {rig.path}), or mark it personal: false"
        )


def _view(rows: Sequence[tuple[str, str, str, str]], advice: str, picture: Path | None) -> Group:
    table = Table("sensor", "board", "views", "known")
    for name, last, views, progress in rows:
        colour = {"found": "green", "": "white"}.get(last, "yellow")
        table.add_row(name, Text(last, style=colour), views, progress)
    lines: list[Table | Text] = [table, Text(advice, style="bold")]
    if picture is not None:
        lines.append(Text(f"coverage: {picture}"))
    lines.append(Text("ends by itself when it is enough; Ctrl-C ends it now"))
    return Group(*lines)
