"""Flips bits of files one at a time, and asks each time whether that is found."""

import random
from collections.abc import Callable
from pathlib import Path


def flips(folder: Path, count: int, seed: int) -> list[tuple[Path, int]]:
    """Return random bits of the files of a folder, each file at least once."""
    rng = random.Random(seed)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return [
        (path, rng.randrange(8 * path.stat().st_size))
        for number in range(max(count, len(paths)))
        for path in [paths[number % len(paths)]]
        if path.stat().st_size
    ]


def check_flips(folder: Path, count: int, is_found: Callable[[], bool]) -> int:
    """Assert that each of the flips is found, and none once it is undone."""
    points = flips(folder, count, seed=3)
    for path, bit in points:
        good = path.read_bytes()
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        assert is_found(), f"bit {bit} of {path.name}"
        path.write_bytes(good)
    assert not is_found()
    return len(points)
