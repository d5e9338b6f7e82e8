"""A disk under a process that is killed: after so many calls that change it, no call changes it any more."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fragile_store import PowerCut

_CHANGING = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "link", "ftruncate", "write")
_NEVER = 1 << 60


@contextmanager
def dying_after(calls: int | None) -> Iterator[Callable[[], int]]:
    """Raise :class:`PowerCut` in place of the call number ``calls`` and of each one after it; None = never.

    Whatever runs while the exception passes (``finally`` and the like) changes nothing either, as after a kill.
    Of a write half the bytes arrive. Yields a function that says how many calls there were.
    """
    good = {name: getattr(os, name) for name in _CHANGING}
    at = _NEVER if calls is None else calls
    made = 0

    def guarded(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            made += 1
            if made > at:
                if name == "write" and made == at + 1:
                    good[name](arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                raise PowerCut
            return good[name](*arguments, **options)

        return call

    try:
        for name in _CHANGING:
            setattr(os, name, guarded(name))
        yield lambda: made
    finally:
        for name, function in good.items():
            setattr(os, name, function)
