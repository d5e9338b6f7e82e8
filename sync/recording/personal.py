"""Which streams of a session are personal: once it was said, nothing on the bus can take it back."""

import json
from collections.abc import Iterable
from pathlib import Path

from sensorium.drivers.bus.counters import make_private
from sensorium.drivers.frame import StreamInfo
from sensorium.sync.episode.personal import zone_of

_FILE = "personal.json"


class PersonalStreams:
    """The streams that were declared personal, with modality and zone; a recorder that is started again knows them."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / _FILE
        try:
            self._known: dict[str, list[str]] = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            self._known = {}

    def objection(self, infos: Iterable[StreamInfo]) -> str:
        """Return why a declaration is refused: it would let a stream out of its consent; "" if it does not."""
        for info in infos:
            if info.name not in self._known:
                continue
            modality, zone = self._known[info.name]
            if not info.is_personal:
                return (
                    f"stream {info.name} is personal and stays so for this session, declared as not personal"
                )
            if info.modality != modality:
                return f"stream {info.name} is personal and of modality {modality}, declared as {info.modality.value}"
            if zone_of(info.details) != zone:
                said = zone_of(info.details) or "no zone"
                return f"stream {info.name} is personal and of zone {zone or '(none)'}, declared as of {said}"
        return ""

    def add(self, infos: Iterable[StreamInfo]) -> None:
        """Note which of the streams are personal."""
        fresh = {
            info.name: [info.modality.value, zone_of(info.details)]
            for info in infos
            if info.is_personal and info.name not in self._known
        }
        if fresh:
            self._known |= fresh
            make_private(self._path.parent)
            partial = self._path.with_name(f".{_FILE}")
            partial.write_text(json.dumps(self._known))
            partial.replace(self._path)
