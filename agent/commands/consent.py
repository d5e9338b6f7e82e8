"""What `sensorium consent` does; each function returns an exit code."""

import os
from collections.abc import Sequence
from pathlib import Path

from sensorium.agent.commands import display
from sensorium.agent.commands.output import print_json, say, say_why
from sensorium.errors import ConfigError, ConsentError, EpisodeError
from sensorium.sync.consent.grants import (
    Conditions,
    ConsentGrant,
    ConsentLedger,
    ConsentStatus,
    Evidence,
    LawfulBasis,
    Purpose,
    Scope,
    format_utc,
)
from sensorium.sync.consent.receipts import dpv_record, kantara_receipt
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.ulid import new_ulid
from sensorium.sync.erasure import erase_all_forgotten
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import signing_key
from sensorium.timebase import SECOND_NS, HostClock, is_utc_kept
from sensorium.uploader.copies import copies
from sensorium.uploader.receipt import read_receipt

DAY_NS = 86_400 * SECOND_NS
EVERYTHING = Scope(("*",))
"""Every stream, captured while the grant is valid."""


def withdraw_consent(folder: Path, spool: Path, grant: str, as_json: bool) -> int:
    """End one grant, or all grants of a subject, and erase what was recorded under them in a spool.

    Exit code 3 if something could not be erased yet; the uploader of the spool tries again.

    Raises:
        ConsentError: If there is no such grant.
        ConfigError: If the records in the folder cannot be read or written.
    """
    store = ConsentStore(folder)
    if ":" in grant:
        ended: Sequence[str] = store.withdraw_subject(grant, by=os.environ.get("USER", ""))
    else:
        store.withdraw(grant, by=os.environ.get("USER", ""))
        ended = (grant,)
    found = Spool(spool)
    erased, failed = erase_all_forgotten(
        found, store.ledger(), HostClock().utc_ns(), is_time_kept=is_utc_kept()
    )
    elsewhere = {each.episode_id: url for each in erased if (url := _delivered_to(found, each.episode_id))}
    if as_json:
        rows = [{"episode": each.episode_id, "streams": dict(each.streams)} for each in erased]
        print_json({"withdrawn": list(ended), "erased": rows, "not_erased": failed, "in_stores": elsewhere})
    else:
        say(f"withdrawn: {', '.join(ended) or 'nothing, no grant of that subject was live'}")
        for each in erased:
            say(f"erased in {each.episode_id}: {', '.join(each.streams) or 'what a crash had left'}")
        for episode, url in elsewhere.items():
            say(f"{episode} lies in {url}, too: the next `sensorium upload` to it erases it there")
        for why in failed.values():
            say(f"not erased yet: {why}")
    return 3 if failed else 0


def _delivered_to(spool: Spool, episode_id: str) -> str:
    """Return the stores that have something of an episode; "" if there is none."""
    urls: dict[str, int] = {}
    for folder in (spool.sealed_folder(episode_id), spool.gone_dir / episode_id):
        receipt = read_receipt(folder)
        urls |= {receipt.store: 0} if receipt is not None else {}
    try:
        urls |= copies(spool.sealed_folder(episode_id))
    except EpisodeError as err:
        return ", ".join([*urls, str(err)])
    return ", ".join(urls)


def show_consent(folder: Path, as_json: bool) -> int:
    """List grants with what they are worth now; 1 if the records cannot be trusted."""
    ledger = ConsentStore(folder).inspect()
    now_ns = HostClock().utc_ns()
    rows = [
        {
            "grant": grant.id,
            "subject": grant.subject,
            "status": _worth(ledger, grant, now_ns),
            "purposes": [purpose.value for purpose in grant.purposes],
            "streams": list(grant.scope.streams),
            "modalities": [modality.value for modality in grant.scope.modalities],
            "zones": list(grant.scope.zones),
            "retain_days": grant.conditions.retain_days,
            "valid_until": format_utc(grant.valid_until),
        }
        for grant in ledger.grants
    ]
    if as_json:
        print_json({"grants": rows, "paused": ledger.is_paused, "fault": ledger.fault})
    else:
        display.print_consent(rows, ledger.is_paused)
        _say_if_nothing_is_there(folder)
    if ledger.fault:
        say_why([f"nothing personal is permitted: {ledger.fault}"])
    return 1 if ledger.fault else 0


def _worth(ledger: ConsentLedger, grant: ConsentGrant, now_ns: int) -> str:
    """Return the state of a grant; none is valid while the records cannot be trusted."""
    status = ledger.status(grant, now_ns)
    return (ConsentStatus.UNKNOWN if ledger.fault and status.is_valid else status).value


def print_receipt(folder: Path, grant_id: str) -> int:
    """Print the receipt of a grant; 1 if the records cannot be trusted.

    Raises:
        ConsentError: If there is no such grant.
    """
    ledger = ConsentStore(folder).inspect()
    grant = next((each for each in ledger.grants if each.id == grant_id), None)
    if grant is None:
        raise ConsentError(f"there is no grant {grant_id} in {folder}; `sensorium consent show` lists them")
    print_json(kantara_receipt(grant, ledger, signing_key(Role.OPERATOR).public.hex()))
    return _faulty(ledger)


def export_records(folder: Path) -> int:
    """Print all grants for other systems; 1 if the records cannot be trusted."""
    ledger = ConsentStore(folder).inspect()
    now_ns = HostClock().utc_ns()
    print_json({"records": [dpv_record(grant, ledger, now_ns) for grant in ledger.grants]})
    return _faulty(ledger)


def _faulty(ledger: ConsentLedger) -> int:
    if ledger.fault:
        say_why([ledger.fault])
    return 1 if ledger.fault else 0


def adopt_grants(folder: Path, as_json: bool) -> int:
    """Enter grant files that lie in the folder in the log.

    Raises:
        ConfigError: If the records cannot be read or written.
    """
    adopted = ConsentStore(folder).adopt(by=os.environ.get("USER", ""))
    if as_json:
        print_json({"adopted": list(adopted)})
    else:
        say(f"adopted: {', '.join(adopted) or 'nothing, every grant file is in the log'}")
    return 0


def restart_consent(folder: Path, as_json: bool) -> int:
    """Begin a new consent log, paused and without a live grant.

    Raises:
        ConfigError: If the disk does not take it.
    """
    store = ConsentStore(folder)
    store.restart(by=os.environ.get("USER", ""))
    ledger = store.ledger()
    if as_json:
        print_json({"log": ledger.log_id, "paused": ledger.is_paused})
    else:
        say(f"new consent log {ledger.log_id}: paused, and nothing is granted yet")
    return 0


def _say_if_nothing_is_there(folder: Path) -> None:
    if not folder.is_dir():
        say(
            f"nothing was granted or paused in {folder.resolve().parent} yet; name another spool with --spool"
        )


def show_log(folder: Path, as_json: bool) -> int:
    """Print the rows of the consent log, oldest first; 1 if they cannot be trusted."""
    store = ConsentStore(folder)
    try:
        rows, fault = store.rows(), store.inspect().fault
    except ConfigError as err:
        rows, fault = (), str(err)
    if as_json:
        print_json({"rows": rows, "fault": fault})
    else:
        display.print_consent_log(rows)
        _say_if_nothing_is_there(folder)
    if fault:
        say_why([fault])
    return 1 if fault else 0


def enter_grant(
    store: ConsentStore,
    subject: str,
    clock: HostClock,
    purposes: Sequence[Purpose],
    scope: Scope = EVERYTHING,
    days: float = 1.0,
    *,
    controller: str = "",
    note: str = "",
    conditions: Conditions = Conditions(),  # noqa: B008 - frozen
    notice: str = "",
    jurisdiction: str = "",
) -> ConsentGrant:
    """Return a grant that is valid from now on, after entering it in the consent folder.

    Raises:
        ConsentError: If the folder cannot hold it.
        ValueError: If a field is malformed.
    """
    now_ns = clock.utc_ns()
    by = os.environ.get("USER", "")
    grant = ConsentGrant(
        id=new_ulid(now_ns),
        subject=subject,
        controller=controller or "the operator of this machine",
        lawful_basis=LawfulBasis.CONSENT,
        purposes=tuple(purposes),
        scope=scope,
        valid_from=now_ns - SECOND_NS,
        valid_until=now_ns + int(days * DAY_NS),
        evidence=Evidence("configuration", by=by, note=note),
        conditions=conditions,
        notice=notice,
        jurisdiction=jurisdiction,
    )
    return store.grant(grant, by=by)
