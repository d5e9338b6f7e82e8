"""An episode of the simulated rig in its spool, and its delivered copy in a store, for whoever reads episodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensor_episodes import document, sensor_episode
from upload_samples import grant_for

from sensorium.sync.consent.grants import Purpose
from sensorium.sync.consent.store import ConsentStore
from sensorium.sync.trust.keys import Role
from sensorium.sync.trust.store import signing_key
from sensorium.timebase import HostClock
from sensorium.uploader.receipt import State
from sensorium.uploader.stores.directory import DirectoryStore
from sensorium.uploader.transfer import Gates, upload_episode

DEVICES: Mapping[str, Mapping[str, Any]] = {
    "camera_left": {"driver": "sim_camera", "size": [160, 120], "render": "cached"},
    "lidar": {"driver": "sim_lidar", "columns": 512},
    "imu": {"driver": "sim_imu"},
    "microphone": {"driver": "sim_microphone"},
    "force": {"driver": "sim_force"},
}
PURPOSES = (Purpose.RECORD, Purpose.LIVE, Purpose.UPLOAD, Purpose.EXPORT, Purpose.AI_TRAIN)


@dataclass(frozen=True)
class Delivered:
    """Where one episode lies."""

    spool: Path
    folder: Path
    copy: Path
    url: str

    @property
    def forms(self) -> dict[str, str]:
        """How a user may name it."""
        return {"folder": str(self.folder), "id": self.folder.name, "copy": str(self.copy), "url": self.url}

    def withdraw(self) -> None:
        """Withdraw the only grant; nobody tells the copy."""
        store = ConsentStore(self.spool / "consent")
        store.withdraw(store.ledger().grants[0].id)


def deliver(
    root: Path,
    seconds: float = 2.0,
    purposes: Sequence[Purpose] = PURPOSES,
    devices: Mapping[str, Mapping[str, Any]] = DEVICES,
) -> Delivered:
    """Record, grant, upload."""
    folder = sensor_episode(root, devices, document(), seconds, is_calibration_sealed=True)
    spool, clock = folder.parent.parent, HostClock()
    consent = ConsentStore(spool / "consent", clock)
    consent.grant(grant_for(purposes=purposes, captured=(0, clock.utc_ns()), valid_around_ns=clock.utc_ns()))
    store = DirectoryStore(root / "central")
    gates = Gates(consent.poll, clock, (signing_key(Role.DEVICE).public,))
    outcome = upload_episode(folder, store, gates)
    assert outcome.state is State.VERIFIED, outcome
    return Delivered(spool, folder, root / "central" / "episodes" / folder.name, f"{store.url}/{folder.name}")
