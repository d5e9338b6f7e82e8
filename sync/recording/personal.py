"""Which streams of a session are personal: once it was said, nothing on the bus can take it back."""

import json
from collections.abc import Iterable
from pathlib import Path

from sensorium.drivers.bus.counters import make_private
from sensorium.drivers.frame import StreamInfo

_FILE = "personal.json"


class PersonalStreams:
    """The streams that were declared personal, with their modality; a recorder that is started again knows them."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / _FILE
        try:
            self._modalities: dict[str, str] = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            self._modalities = {}

    def objection(self, infos: Iterable[StreamInfo]) -> str:
        """Return why a declaration is refused: it would let a stream out of its consent; "" if it does not."""
        for info in infos:
            modality = self._modalities.get(info.name)
            if modality is None:
                continue
            if not info.is_personal:
                return (
                    f"stream {info.name} is personal and stays so for this session, declared as not personal"
                )
            if info.modality != modality:
                return f"stream {info.name} is personal and of modality {modality}, declared as {info.modality.value}"
        return ""

    def add(self, infos: Iterable[StreamInfo]) -> None:
        """Note which of the streams are personal."""
        fresh = {i.name: i.modality.value for i in infos if i.is_personal and i.name not in self._modalities}
        if fresh:
            self._modalities |= fresh
            make_private(self._path.parent)
            partial = self._path.with_name(f".{_FILE}")
            partial.write_text(json.dumps(self._modalities))
            partial.replace(self._path)
