"""What a reading of a document lost: keys that it holds and that nobody knows."""

from typing import Any


def unknown_keys(found: Any, known: Any, path: str = "") -> list[str]:
    """Return where ``found`` has keys that its own reading ``known`` lost (pydantic checks the top only)."""
    if isinstance(found, dict) and isinstance(known, dict):
        lost = [f"{path}{key}" for key in found if key not in known]
        for key in found.keys() & known.keys():
            lost += unknown_keys(found[key], known[key], f"{path}{key}.")
        return lost
    if isinstance(found, list) and isinstance(known, list):
        return [
            lost
            for index, (here, there) in enumerate(zip(found, known, strict=False))
            for lost in unknown_keys(here, there, f"{path}{index}.")
        ]
    return []
