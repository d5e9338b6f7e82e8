"""What `sensorium episodes verify` does: whole, by whom, trusted; each function returns an exit code."""

import sys
from pathlib import Path
from typing import Any

from sensorium.agent.commands.output import print_json, say
from sensorium.errors import EpisodeError, UsageError
from sensorium.sync.episode.chain import chain_heads
from sensorium.sync.episode.files import MANIFEST_FILE, recorded_files
from sensorium.sync.episode.manifest import manifest_digest, read_seal
from sensorium.sync.episode.spool import Spool
from sensorium.sync.episode.verify import Verification, chain_gaps, examine
from sensorium.sync.reading.locate import folder_of


def verify_episode(episode: str | Path, any_signer: bool, as_json: bool, spool: Path | None = None) -> int:
    """Check one episode; exit code 1 if anything speaks against it.

    Args:
        episode: As :func:`sensorium.sync.reading.locate.locate` takes it.
        any_signer: Let a signer pass that is not trusted here.

    Raises:
        UsageError: If there is no such episode.
        TrustError: If this machine's trust store cannot be read.
    """
    folder = folder_of(episode, spool)
    if not folder.is_dir():
        raise UsageError(f"{episode} is not an episode folder; `sensorium episodes list` names them")
    if not (folder / MANIFEST_FILE).exists() and not recorded_files(folder):
        raise UsageError(
            f"{folder} is not an episode: it holds no {MANIFEST_FILE} and no .mcap file; `sensorium episodes list` "
            "names them, and without a name the whole spool is verified"
        )
    found = examine(folder)
    is_ours = found.signer.is_own  # of others' chains this machine knows nothing
    gaps = neighbour_gaps(folder) if is_ours else []
    if as_json:
        print_json({**_document(found), "chain": gaps})
    else:
        _say(folder, found, any_signer)
        for gap in gaps:
            say(f"  chain: {gap}")
    return 0 if _passes(found, any_signer) and not gaps else 1


def verify_spool(spool: Path, any_signer: bool, as_json: bool) -> int:
    """Check every episode of a spool, and that none of the chain is missing; exit code 1 if one is, or fails.

    Raises:
        UsageError: If there is no such folder.
        TrustError: If this machine's trust store cannot be read.
    """
    if not spool.is_dir():
        raise UsageError(f"{spool} is not a spool; name one with --spool")
    folders = Spool(spool).sealed_folders()
    found = []
    for number, folder in enumerate(folders, 1):
        if sys.stderr.isatty() and not as_json:
            sys.stderr.write(f"verifying {number} of {len(folders)}: {folder.name}\r")
        found.append(examine(folder))
    gaps = spool_gaps(Spool(spool))
    if as_json:
        print_json({"episodes": [_document(each) for each in found], "chain": gaps})
    else:
        for folder, each in zip(folders, found, strict=True):
            _say(folder, each, any_signer)
        for gap in gaps:
            say(f"chain: {gap}")
        if not gaps:
            say(f"chain: none of {len(folders)} episodes is missing")
    return 0 if not gaps and all(_passes(each, any_signer) for each in found) else 1


def spool_gaps(spool: Spool) -> list[str]:
    """Return where the chain of a spool's episodes is broken."""
    links = []
    for folder in (*spool.sealed_folders(), *spool.gone_folders()):
        try:
            manifest = read_seal(folder)
        except EpisodeError:
            continue  # whoever comes after it misses it
        links.append((manifest.episode_id, manifest_digest(folder), manifest.prev_manifest))
    try:
        heads = chain_heads(spool)
    except EpisodeError as err:
        return [str(err)]
    return chain_gaps(links, heads)


def neighbour_gaps(episode: Path) -> list[str]:
    """Return what is missing next to an episode of a spool: the one before it, or the one that was signed last."""
    folder, spool = episode.resolve(), Spool.of(episode)
    if folder.parent not in (spool.sealed_dir, spool.gone_dir):
        return []
    try:
        manifest, heads = read_seal(folder), chain_heads(spool)
        there = (*spool.sealed_folders(), *spool.gone_folders())
        present = {manifest_digest(each) for each in there if (each / MANIFEST_FILE).is_file()}
    except EpisodeError as err:
        return [str(err)]
    if not heads:
        return []  # it was carried away: its neighbours are elsewhere
    own = (manifest.episode_id, manifest_digest(folder), manifest.prev_manifest)
    return chain_gaps([own, *(("", digest, "") for digest in present)], heads)


def _passes(found: Verification, any_signer: bool) -> bool:
    if any_signer and found.signer.key_id:
        return not found.intact.reasons
    return found.is_proven


def _document(found: Verification) -> dict[str, Any]:
    signer = found.signer
    return {
        **found.intact.document(),
        "signer": {"key_id": signer.key_id, "name": signer.name},
        "trusted": signer.is_trusted,
        "distrust": signer.distrust,
        "remarks": list(found.remarks),
    }


def _say(folder: Path, found: Verification, any_signer: bool) -> None:
    signer = found.signer
    say(f"{folder.name}: {found.intact.status.value}")
    for reason in found.intact.reasons:
        say(f"  {reason}")
    if signer.is_trusted:
        say(f"  signed by {signer.name} (key {signer.key_id[:16]}), trusted here")
    else:
        passed = "; passed by --any-signer" if any_signer and signer.key_id else ""
        say(f"  {signer.distrust}{passed}")
    for remark in found.remarks:
        say(f"  remark: {remark}")
