"""Stores by URL: a table of lazy strings, one row for each kind; every store is opened with retries around it."""

import importlib
import random
from urllib.parse import urlsplit

from sensorium.errors import ConfigError
from sensorium.timebase import Clock
from sensorium.uploader.stores.retrying import Retrier, RetryingStore, RetryPolicy
from sensorium.uploader.stores.store import Store

KINDS = {
    "file": "sensorium.uploader.stores.directory:open_directory",
}
"""By the scheme of the URL: a function that takes the URL and returns the bare store."""


def open_store(url: str, clock: Clock, rng: random.Random) -> Store:
    """Return the store behind a URL; its calls are repeated when they may work the next time.

    Raises:
        ConfigError: If no store of this program has such an address.
    """
    scheme = urlsplit(url).scheme
    if scheme not in KINDS:
        raise ConfigError(
            f"store {url!r}: unknown kind {scheme!r}; a folder is written file:///absolute/path"
        )
    module, _, function = KINDS[scheme].partition(":")
    store: Store = getattr(importlib.import_module(module), function)(url)
    return RetryingStore(store, Retrier(RetryPolicy(), clock, rng))
