"""Samples of one device clock with their truth, ours or a foreign file's, checked before anything is judged.

A file for ``--generators`` is Python. Each of its public functions is a row of the table: it returns one run, or a
list of them, and may take a ``seed``. A run is a dict, or an object with these attributes:

    capture_ns      (n,) integers, required: when each sample truly was captured, host nanoseconds
    device_ticks    (n,) integers, required: what the device's counter said, as raw as it sends it
    arrival_ns      (n,) integers, required: when the host got it; never before its capture, never running backwards
    tick_ns         how long the driver says that a tick lasts (default 1000)
    modulus         at which ticks the counter wraps; None (default) = never
    rate_hz         nominal samples per second (default: from capture_ns)
    min_latency_ns  the constant least latency, which the driver declares (default 0)
    max_latency_ns  the largest latency that the driver calls credible (default 1e9)
    epoch           (n,) integers: grows by one where the device's clock restarted or stepped (default: never)
    block           samples of one frame (default 1); those that share an arrival come with that one alone
    floor_moves     True where the least latency truly wanders, so that an alarm is right (default False)
    name            of the row (default: the function's name)
"""

import importlib.util
import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.drivers.frame import ClockKind, DeviceClock, Encoding, Frame, Latency, Modality, StreamInfo

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

RESTART_NS = 500_000_000
"""The references are told of jumps beyond this, as any unwrapper would; smaller steps are theirs to bear."""
PAUSE_S = 2.0
FEWEST = 8


class GeneratorError(Exception):
    """A foreign file or what it returned cannot be used; the text says which, what was found and what to do."""


@dataclass(frozen=True, eq=False)
class Samples:
    """One run; the fields are those of the module's docstring."""

    name: str
    capture_ns: IntArray
    device_ticks: IntArray
    arrival_ns: IntArray
    tick_ns: float = 1000.0
    modulus: int | None = None
    rate_hz: float = 0.0
    min_latency_ns: int = 0
    max_latency_ns: int = 1_000_000_000
    epoch: IntArray | None = None
    block: int = 1
    floor_moves: bool = False

    @property
    def nominal_hz(self) -> float:
        """Return the declared rate, or what the median step of the captures says."""
        if self.rate_hz > 0:
            return self.rate_hz
        step_ns = max(float(np.median(np.diff(self.capture_ns))), 1.0)
        return float(f"{1e9 / step_ns:.3g}")

    @property
    def epochs(self) -> IntArray:
        return np.zeros(self.capture_ns.size, np.int64) if self.epoch is None else self.epoch

    def age_s(self) -> FloatArray:
        """Return (n,) seconds since the beginning of each sample's epoch."""
        return _since(self.capture_ns, np.diff(self.epochs, prepend=self.epochs[0] - 1) != 0)

    def since_pause_s(self) -> FloatArray:
        """Return (n,) seconds since the last pause of the captures; inf before the first one."""
        gaps = np.diff(self.capture_ns, prepend=self.capture_ns[0]) * 1e-9 > max(PAUSE_S, 5 / self.nominal_hz)
        since = _since(self.capture_ns, np.concatenate(([True], gaps[1:])))
        first = int(gaps.argmax()) if gaps.any() else gaps.size
        since[:first] = np.inf
        return since

    def device_ns(self) -> FloatArray:
        """Return (n,) device time, rightly unwrapped: the truth decides which wrap a tick is of."""
        ticks = self.device_ticks
        if self.modulus is None:
            return np.asarray((ticks - ticks[0]) * self.tick_ns, np.float64)
        found = np.empty(ticks.size, np.int64)
        for epoch in np.unique(self.epochs):
            part = self.epochs == epoch
            elapsed = (self.capture_ns[part] - self.capture_ns[part][0]) / self.tick_ns
            behind = (ticks[part][0] + elapsed - ticks[part]) / self.modulus
            found[part] = ticks[part] + np.rint(behind).astype(np.int64) * self.modulus
        return np.asarray((found - found[0]) * self.tick_ns, np.float64)

    def restarts(self) -> list[slice]:
        """Return the parts between the jumps of the device's clock that nobody could miss."""
        jump_ns = np.diff(self.device_ns()) - np.diff(self.capture_ns)
        edges = np.flatnonzero(np.abs(jump_ns) > RESTART_NS) + 1
        bounds = [0, *edges.tolist(), self.capture_ns.size]
        return [slice(a, b) for a, b in itertools.pairwise(bounds)]

    def info(self) -> StreamInfo:
        """Return the stream as its driver would declare it."""
        tick = Fraction(self.tick_ns).limit_denominator(10**6)
        return StreamInfo(
            "bench",
            Modality.OTHER,
            Encoding.JPEG,
            self.nominal_hz,
            "bench",
            DeviceClock(ClockKind.FREE, tick.numerator, tick.denominator, self.modulus),
            Latency(self.min_latency_ns, 0, self.max_latency_ns),
        )

    def frames(self) -> list[Frame]:
        """Return the frames as the driver would send them."""
        ticks, arrivals, size = self.device_ticks, self.arrival_ns, self.block
        found = []
        for begin in range(0, ticks.size - size + 1, size):
            part = slice(begin, begin + size)
            came = arrivals[part]
            if size > 1 and came[0] == came[-1]:
                came = came[-1:]
            found.append(Frame("bench", begin, size, ticks[part], came, b""))
        return found


def _since(capture_ns: IntArray, begins: NDArray[np.bool_]) -> FloatArray:
    starts = np.flatnonzero(begins)
    number = np.cumsum(begins) - 1
    return np.asarray((capture_ns - capture_ns[starts[number]]) * 1e-9, np.float64)


Generator = Callable[[int], list[Samples]]
"""Takes a seed, returns the runs of a row."""


def read_generators(path: Path) -> dict[str, Generator]:
    """Return the rows of a foreign file.

    Raises:
        GeneratorError: If the file cannot be run, or has no function that can be one.
    """
    if not path.is_file():
        raise GeneratorError(f"--generators {path}: there is no such file")
    spec = importlib.util.spec_from_file_location("foreign_generators", path)
    if spec is None or spec.loader is None:
        raise GeneratorError(f"--generators {path}: not a Python file (its name has to end in .py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as err:
        raise GeneratorError(f"--generators {path}: cannot be run: {type(err).__name__}: {err}") from err
    found = {
        name: _row(path, name, function)
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and function.__module__ == module.__name__
    }
    if not found:
        raise GeneratorError(f"--generators {path}: no public function in it; each is to return samples")
    return found


def _row(path: Path, name: str, function: Callable[..., Any]) -> Generator:
    where = f"{path.name}, {name}"
    takes = inspect.signature(function).parameters.values()
    needed = [one.name for one in takes if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if set(needed) - {"seed"}:
        raise GeneratorError(f"{where}: wants {', '.join(needed)}; only an argument `seed` is given")
    takes_seed = any(one.name == "seed" for one in takes)

    def generate(seed: int) -> list[Samples]:
        try:
            found = function(seed=seed) if takes_seed else function()
        except Exception as err:
            raise GeneratorError(f"{where}: seed {seed} raised {type(err).__name__}: {err}") from err
        runs = list(found) if isinstance(found, (list, tuple)) else [found]
        if not runs:
            raise GeneratorError(f"{where}: seed {seed} returned no run")
        return [checked(one, name, where) for one in runs]

    return generate


def checked(found: Any, name: str, where: str) -> Samples:
    """Return what a foreign generator returned as samples.

    Raises:
        GeneratorError: If a field is missing, unknown, of the wrong kind or length, or cannot be true.
    """
    if found is None:
        raise GeneratorError(f"{where}: returned nothing")
    given = found if isinstance(found, dict) else _attributes(found)
    known = {one.name for one in fields(Samples)}
    if isinstance(found, dict) and (unknown := set(given) - known):
        raise GeneratorError(
            f"{where}: unknown field {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
        )
    values = {key: value for key, value in given.items() if value is not None}
    values.setdefault("name", name)
    arrays = {}
    for key in ("capture_ns", "device_ticks", "arrival_ns", "epoch"):
        if key in values:
            arrays[key] = _integers(values[key], key, where)
        elif key != "epoch":
            raise GeneratorError(f"{where}: no field {key}; found {', '.join(sorted(values))}")
    _consistent(arrays, where)
    plain = {key: value for key, value in values.items() if key not in arrays}
    values = {**arrays, **_numbers(plain, where)}
    return Samples(**values)


def _attributes(found: Any) -> dict[str, Any]:
    return {one.name: getattr(found, one.name) for one in fields(Samples) if hasattr(found, one.name)}


def _integers(value: Any, key: str, where: str) -> IntArray:
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise GeneratorError(
            f"{where}: {key} is to be (n,) integers, found {array.dtype} of shape {array.shape}"
        )
    if array.dtype.kind == "f" and (not np.isfinite(array).all() or (array != np.rint(array)).any()):
        raise GeneratorError(f"{where}: {key} is to be integers (nanoseconds or ticks), found fractions")
    return array.astype(np.int64)


def _consistent(arrays: dict[str, IntArray], where: str) -> None:
    sizes = {key: array.size for key, array in arrays.items()}
    if len(set(sizes.values())) > 1 or min(sizes.values()) < FEWEST:
        raise GeneratorError(f"{where}: all arrays are to have one length, {FEWEST} at least, found {sizes}")
    capture_ns, arrival_ns = arrays["capture_ns"], arrays["arrival_ns"]
    for key, wrong in (
        ("arrival_ns runs backwards", np.diff(arrival_ns, prepend=arrival_ns[0]) < 0),
        ("arrival_ns lies before capture_ns", arrival_ns < capture_ns),
        ("capture_ns runs backwards", np.diff(capture_ns, prepend=capture_ns[0]) < 0),
    ):
        if wrong.any():
            raise GeneratorError(
                f"{where}: {key}, first at sample {int(wrong.argmax())}; samples come in order"
            )
    if "epoch" in arrays and (np.diff(arrays["epoch"]) < 0).any():
        raise GeneratorError(f"{where}: epoch shrinks; it is to grow by one at each restart or step")


def _numbers(values: dict[str, Any], where: str) -> dict[str, Any]:
    kinds: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("tick_ns", "rate_hz"), (int, float, np.integer, np.floating)),
        **dict.fromkeys(("modulus", "min_latency_ns", "max_latency_ns", "block"), (int, np.integer)),
        "name": (str,),
        "floor_moves": (bool, np.bool_),
    }
    for key, value in values.items():
        if not isinstance(value, kinds[key]):
            raise GeneratorError(f"{where}: {key} is to be {kinds[key][0].__name__}, found {value!r}")
    for key in ("tick_ns", "modulus", "block"):
        if key in values and values[key] <= 0:
            raise GeneratorError(f"{where}: {key} is to be above 0, found {values[key]}")
    low, high = values.get("min_latency_ns", 0), values.get("max_latency_ns", 10**9)
    if not 0 <= low <= high:
        raise GeneratorError(f"{where}: min_latency_ns {low} and max_latency_ns {high} are no range")
    return values


def chosen(rows: Sequence[str], wanted: str | None) -> list[str]:
    """Return the names that begin with what was asked for.

    Raises:
        GeneratorError: If there is none.
    """
    if wanted is None:
        return list(rows)
    found = [name for name in rows if name.startswith(wanted)]
    if not found:
        raise GeneratorError(f"--family {wanted}: no such family; there are {', '.join(rows)}")
    return found
