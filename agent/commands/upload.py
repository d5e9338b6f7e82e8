"""What `sensorium upload` does, and the upload that ends `sensorium demo`."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from sensorium.agent.commands import display
from sensorium.agent.commands.output import print_json, print_json_line, say
from sensorium.errors import SensoriumError, UsageError
from sensorium.masking import masked_address
from sensorium.sync.consent.grants import format_utc
from sensorium.timebase import Clock, HostClock
from sensorium.uploader.receipt import State
from sensorium.uploader.service import EpisodeStatus, UploadService, open_service, run, stop_signals
from sensorium.uploader.transfer import Progress

WAITING = "waiting"
"""Status of what has neither arrived nor been refused."""


def upload_spool(spool: Path, store: str, consent: Path, once: bool, as_json: bool) -> int:
    """Bring the sealed episodes of a spool into a store, until Ctrl-C or with ``once`` until nothing is due.

    Returns:
        0 if all are verified there (or there are none), 1 if some were refused, 3 if some still wait.

    Raises:
        UsageError: If the store is not named or the spool not there.
        ConfigError: If no store has such an address.
    """
    if not store:
        raise UsageError("name the store: sensorium upload --store file:///path/to/store")
    if not spool.is_dir():
        raise UsageError(f"{spool} is not a spool; name one with --spool")
    clock = HostClock()
    service = open_service(spool.resolve(), store, consent, clock)
    if not once:
        with stop_signals() as should_stop:
            return run(service, _Changes(service, clock, as_json), clock, should_stop, is_once=False)
    with display.Progress("upload", as_json) as progress:
        code = deliver(service, clock, progress)
    found = verification(service, store)
    if as_json:
        print_json({"verification": found})
    else:
        display.print_verification(found)
    return code


def deliver(service: UploadService, clock: Clock, progress: display.Progress) -> int:
    """Step the service until nothing is due or somebody stops it; return the exit code."""
    with stop_signals() as should_stop:
        return run(service, _Shown(progress), clock, should_stop, is_once=True)


def verification(
    service: UploadService, store: str, episodes: Collection[str] | None = None
) -> dict[str, Any]:
    """Return the ``verification`` of a document: where the episodes (all, or those named) are proven to be.

    ``status`` is that of the worst: ``waiting``, else how the oldest was refused, else ``verified``.
    """
    chosen = {
        name: status
        for name, status in sorted(service.episodes.items())
        if episodes is None or name in episodes
    }
    if not chosen:
        return {
            "status": "not uploaded",
            "store": masked_address(store),
            "reasons": ["no episode was sealed"],
            "episodes": 0,
        }
    waiting = {name: why for name, why in service.waiting().items() if name in chosen}
    reasons = [reason for status in chosen.values() for reason in status.reasons]
    return {
        "status": WAITING if waiting else _refusal(chosen.values()),
        "store": masked_address(store),
        "reasons": [*(f"{name}: {why}" for name, why in waiting.items()), *reasons],
        "episodes": len(chosen),
        "waiting": waiting,
        "remarks": list(service.remarks),
    }


def _refusal(statuses: Collection[EpisodeStatus]) -> str:
    refused = (status.state for status in statuses if status.state is not State.VERIFIED)
    return next(refused, State.VERIFIED).value


class _Shown:
    """Shows how far the upload is; what came of it is said at the end."""

    def __init__(self, progress: display.Progress) -> None:
        self._progress = progress

    def progressed(self, progress: Progress) -> None:
        self._progress.show_upload(progress)

    def stepped(self) -> None:
        pass

    def failed(self, error: SensoriumError) -> None:
        pass


class _Changes:
    """Prints a line whenever something about an episode, or the store, is no longer as it was."""

    def __init__(self, service: UploadService, clock: Clock, as_json: bool) -> None:
        self._service = service
        self._clock = clock
        self._as_json = as_json
        self._said: dict[str, tuple[State, tuple[str, ...], str]] = {}
        self._parked = ""
        self._remarks: frozenset[str] = frozenset()

    def progressed(self, _: Progress) -> None:
        self._say_changes()

    def stepped(self) -> None:
        self._say_changes()

    def failed(self, error: SensoriumError) -> None:
        pass

    def _say_changes(self) -> None:
        for name, status in sorted(self._service.episodes.items()):
            now = (status.state, status.reasons, status.error)
            if self._said.get(name) != now:
                self._said[name] = now
                self._say_episode(name, status)
        if self._service.parked != self._parked:
            self._parked = self._service.parked
            self._say_parked()
        for remark in self._service.remarks:
            if remark not in self._remarks:
                self._say_remark(remark)
        self._remarks |= frozenset(self._service.remarks)

    def _say_remark(self, remark: str) -> None:
        if self._as_json:
            self._print({"remark": remark})
        else:
            say(f"remark: {remark}")

    def _say_episode(self, name: str, status: EpisodeStatus) -> None:
        if self._as_json:
            said = {"episode": name, "state": status.state.value, "reasons": list(status.reasons)}
            self._print({**said, "error": status.error})
        else:
            why = "; ".join(filter(None, (*status.reasons, status.error)))
            say(f"{name}: {status.state.value}" + (f"; {why}" if why else ""))

    def _say_parked(self) -> None:
        if self._as_json:
            self._print({"parked": self._parked})
        else:
            say(f"store left alone: {self._parked}" if self._parked else "the store works again")

    def _print(self, found: dict[str, Any]) -> None:
        print_json_line({"utc": format_utc(self._clock.utc_ns()), **found})
