"""What `sensorium upload` does."""

from pathlib import Path

from sensorium.agent.commands import display
from sensorium.agent.commands.output import print_json
from sensorium.agent.session.run import upload_all
from sensorium.errors import UsageError
from sensorium.sync.episode.spool import Spool
from sensorium.timebase import HostClock
from sensorium.uploader.service import main as upload_service


def upload_spool(spool: Path, store: str, consent: Path, once: bool, as_json: bool) -> int:
    """Upload every sealed episode of a spool; exit code 1 if one was refused."""
    if not store:
        raise UsageError("name the store: sensorium upload --store file:///path/to/store")
    if not spool.is_dir():
        raise UsageError(f"{spool} is not a spool; name one with --spool")
    spool = spool.resolve()
    if not once:
        return upload_service(["--spool", str(spool), "--store", store, "--consent", str(consent)])
    with display.Progress("upload", as_json) as progress:
        found = upload_all(
            Spool(spool).sealed_folders(), spool, store, consent, HostClock(), progress.show_upload
        )
    if as_json:
        print_json({"verification": found})
    else:
        display.print_verification(found)
    return 0 if found["status"] == "verified" else 1
