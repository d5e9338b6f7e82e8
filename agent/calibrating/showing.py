"""Whether pictures of a recording may be drawn for people: the purpose ``live``, see docs/trust.md."""

from collections.abc import Iterable
from pathlib import Path

from sensorium.drivers.frame import Modality, StreamInfo
from sensorium.errors import ConsentError
from sensorium.sync.consent.decisions import decide
from sensorium.sync.consent.grants import Purpose
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.consent.use import denials
from sensorium.sync.episode.files import MANIFEST_FILE
from sensorium.sync.episode.manifest import read_manifest
from sensorium.sync.reading.locate import locate
from sensorium.sync.reading.rights import consent_of, rights_by
from sensorium.timebase import HostClock

_HOW = "leave the picture out, or enter a grant for it: sensorium consent grant SUBJECT --purpose live"


def require_shown(recording: Path, consent: Path | None) -> None:
    """Refuse pictures of an episode whose cameras may not be shown to people on this machine.

    Args:
        consent: Folder of the grants; None = that of its spool, or the state beside a copy.

    Raises:
        ConsentError: Names the cameras and why.
    """
    manifest = read_manifest(recording) if (recording / MANIFEST_FILE).is_file() else None
    if manifest is None:
        return  # not recorded by us: whoever did is not asked
    rights = rights_by(manifest, consent_of(locate(recording), consent))
    cameras = [record.info.name for record in manifest.streams if record.info.modality is Modality.CAMERA]
    denied = denials(rights, manifest, Purpose.LIVE, HostClock().utc_ns(), cameras)
    if denied:
        reasons = "; ".join(f"stream {name}: {each.reason}" for name, each in denied.items())
        raise ConsentError(f"no picture of episode {manifest.episode_id} is drawn: {reasons}; {_HOW}")


def refusal_now(streams: Iterable[StreamInfo], consent: Path) -> str:
    """Return why what these streams capture at this moment may not be shown; "" if it may."""
    ledger, now_ns = ConsentStore(consent).inspect(), HostClock().utc_ns()
    for info in streams:
        decision = decide(info, (now_ns, now_ns), Purpose.LIVE, now_ns, ledger)
        if not decision.is_allowed:
            return f"no picture of {info.name} is drawn: {decision.reason}; {_HOW}"
    return ""
