"""What `sensorium consent grant` does."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeVar

from sensorium.agent.commands.consent import enter_grant
from sensorium.agent.commands.output import print_json, say, say_why
from sensorium.drivers.frame import Modality
from sensorium.errors import EpisodeError, UsageError
from sensorium.sync.consent.grants import Conditions, Purpose, Scope, format_utc, parse_utc
from sensorium.sync.consent.remedy import captured_utc_ns
from sensorium.sync.consent.store import DEFAULT_FOLDER, ConsentStore
from sensorium.sync.episode.manifest import Manifest, read_manifest
from sensorium.sync.episode.spool import Spool
from sensorium.sync.reading.locate import LocatedEpisode, Place, locate
from sensorium.timebase import HostClock

_EPISODES_LOOKED_AT = 20
EnumT = TypeVar("EnumT", bound=Enum)


@dataclass(frozen=True, slots=True)
class Permission:
    """What somebody permits, as the command line says it.

    Attributes:
        consent: Folder of the grants; None = the spool's.
        streams: Names or patterns.
        episode: Id or folder of the episode that was captured already; "" = captures from now on.
        captured_from, captured_until: RFC 3339 times; "" = those of the grant's validity.
        modalities, zones: Nothing else; none = whatever the streams are, wherever.
        retain_days: None = as long as the grant is valid.
    """

    subject: str
    streams: tuple[str, ...]
    purposes: tuple[str, ...]
    days: float
    controller: str
    spool: Path
    consent: Path | None = None
    episode: str = ""
    captured_from: str = ""
    captured_until: str = ""
    modalities: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    retain_days: int | None = None
    notice: str = ""
    jurisdiction: str = ""


def give_consent(asked: Permission, as_json: bool) -> int:
    """Enter a grant and print its id.

    Raises:
        UsageError: If a purpose, a stream or the episode is unknown, or a field malformed.
        ConsentError: If the folder cannot hold it.
    """
    purposes = _chosen(Purpose, "--purpose", asked.purposes)
    modalities = _chosen(Modality, "--modality", asked.modalities)
    located = _located(asked) if asked.episode else None
    manifest = None if located is None else read_manifest(located.folder)
    spool = asked.spool if located is None else _spool_of(asked, located)
    captured = captured_utc_ns(manifest) if manifest is not None else _captured(asked)
    unseen = _check_streams(asked.streams, manifest, spool)
    store = ConsentStore(asked.consent or spool / DEFAULT_FOLDER)
    try:
        scope = Scope(asked.streams, tuple(modalities), *captured, zones=asked.zones)
        grant = enter_grant(
            store,
            asked.subject,
            HostClock(),
            purposes,
            scope,
            asked.days,
            controller=asked.controller,
            conditions=Conditions(retain_days=asked.retain_days),
            notice=asked.notice,
            jurisdiction=asked.jurisdiction,
        )
    except ValueError as err:
        raise UsageError(str(err)) from err
    if as_json:
        print_json({"grant": grant.id, "valid_until": format_utc(grant.valid_until)})
    else:
        say(f"granted {grant.id}, valid until {format_utc(grant.valid_until)}{_covering(captured)}")
    say_why(unseen)
    return 0


def _covering(captured: tuple[int | None, int | None]) -> str:
    first_ns, end_ns = captured
    if first_ns is None and end_ns is None:
        return ""
    parts = [f"from {format_utc(first_ns)}"] if first_ns is not None else []
    parts += [f"until {format_utc(end_ns)}"] if end_ns is not None else []
    return f", for what was captured {' '.join(parts)}"


def _chosen(kind: type[EnumT], option: str, names: Sequence[str]) -> list[EnumT]:
    known = [str(each.value) for each in kind]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UsageError(
                f"{option}: there is no {kind.__name__.lower()} {name!r}; {hint}known: {', '.join(known)}"
            )
    return [kind(name) for name in names]


def _captured(asked: Permission) -> tuple[int | None, int | None]:
    found: list[int | None] = []
    for option, text in (
        ("--captured-from", asked.captured_from),
        ("--captured-until", asked.captured_until),
    ):
        try:
            found.append(parse_utc(text) if text else None)
        except ValueError as err:
            raise UsageError(f"{option} {err}") from err
    first_ns, end_ns = found
    if first_ns is not None and end_ns is not None and first_ns >= end_ns:
        raise UsageError(
            f"--captured-from {asked.captured_from} is not before --captured-until {asked.captured_until}"
        )
    return first_ns, end_ns


def _located(asked: Permission) -> LocatedEpisode:
    if asked.captured_from or asked.captured_until:
        raise UsageError(
            "--for names an episode's time already: leave out --captured-from and --captured-until"
        )
    return locate(asked.episode, asked.spool)


def _spool_of(asked: Permission, episode: LocatedEpisode) -> Path:
    return Spool.of(episode.folder).root if episode.place is Place.SPOOL else asked.spool


def _check_streams(patterns: Sequence[str], manifest: Manifest | None, spool: Path) -> list[str]:
    """Return what could not be checked.

    Raises:
        UsageError: If a name is of no stream although those that there are are known.
    """
    names = _known_streams([manifest] if manifest is not None else _recent(spool))
    unchecked = []
    for pattern in patterns:
        if any(sign in pattern for sign in "*?[") or pattern in names:
            continue
        where = f"episode {manifest.episode_id}" if manifest is not None else f"what was recorded in {spool}"
        if names:
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
            later = (
                ""
                if manifest is not None
                else f"; for a stream that is yet to come write --stream '{pattern}*'"
            )
            raise UsageError(f"--stream {pattern}: {where} has no such stream; {hint}{later}")
        unchecked.append(
            f"--stream {pattern}: nothing is recorded in {spool} yet, so the name was not checked; `sensorium record` "
            "says before it begins which streams have no grant"
        )
    return unchecked


def _recent(spool: Path) -> list[Manifest]:
    found = []
    for folder in Spool(spool).sealed_folders()[-_EPISODES_LOOKED_AT:]:
        try:
            found.append(read_manifest(folder))
        except EpisodeError:
            continue  # damaged: what it says of its streams is not worth a refusal
    return found


def _known_streams(manifests: Sequence[Manifest]) -> list[str]:
    return list(dict.fromkeys(record.info.name for manifest in manifests for record in manifest.streams))
