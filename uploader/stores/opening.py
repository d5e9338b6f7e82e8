"""Stores by URL: a table of lazy strings, one row for each kind; every store is opened with retries around it."""

import importlib
import random
from dataclasses import dataclass
from urllib.parse import urlsplit

from sensorium.errors import ConfigError
from sensorium.masking import masked_address
from sensorium.timebase import Clock
from sensorium.uploader.stores.retrying import Retrier, RetryingStore, RetryPolicy
from sensorium.uploader.stores.store import Store


@dataclass(frozen=True, slots=True)
class StoreKind:
    """How a kind of store is written, and ``module:function`` that takes the URL and returns the bare store."""

    example: str
    target: str


KINDS = {
    "file": StoreKind("file:///absolute/path", "sensorium.uploader.stores.directory:open_directory"),
}
"""By the scheme of the URL."""


def open_store(url: str, clock: Clock, rng: random.Random) -> Store:
    """Return the store behind a URL; its calls are repeated when they may work the next time.

    Raises:
        ConfigError: If no store of this program has such an address, or what it needs is not installed.
    """
    scheme = urlsplit(url).scheme
    kind = KINDS.get(scheme)
    if kind is None:
        known = ", ".join(each.example for each in KINDS.values())
        raise ConfigError(
            f"store {masked_address(url)!r}: unknown kind {scheme!r}; a store is written {known}"
        )
    module, _, function = kind.target.partition(":")
    store: Store = getattr(importlib.import_module(module), function)(url)
    return RetryingStore(store, Retrier(RetryPolicy(), clock, rng))
