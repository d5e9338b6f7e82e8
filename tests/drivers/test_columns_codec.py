import contextlib

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.drivers.payloads.columns import VERSION, decode, encode, runs_of
from sensorium.drivers.payloads.envelope import AS_IT_CAME
from sensorium.errors import PayloadError

DTYPES = ("<i1", "<u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8")


def _stored_bytes(blocks: list[bytes]) -> int:
    """Return the size of blocks in a chunk as the writer compresses it."""
    return len(zstandard.ZstdCompressor(level=1).compress(b"".join(blocks)))


@settings(deadline=None, max_examples=300)
@given(
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=8).map(tuple),
    count=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_columns_come_back_and_grow_by_a_byte(dtypes: tuple[str, ...], count: int, seed: int) -> None:
    """Any bits: extremes of integers, floats that are no numbers, negative zeros."""
    payload = np.random.default_rng(seed).bytes(count * sum(int(dtype[2:]) for dtype in dtypes))
    coded = encode(payload, runs_of(dtypes))
    assert decode(coded, runs_of(dtypes)) == payload
    assert len(coded) == len(payload) + 1


def test_runs_join_columns_of_one_size_and_leave_doubles_alone() -> None:
    assert runs_of(("<i2", "<u2", "<f4", "<u4", "<f8", "<i8")) == (
        (2, 2, True),
        (2, 4, True),
        (1, 8, False),
        (1, 8, True),
    )


@pytest.mark.parametrize(("rows", "least_gain"), [(10, 1.6), (100, 1.8), (1000, 1.9)])
def test_blocks_of_a_noisy_signal_are_stored_much_smaller(rows: int, least_gain: float) -> None:
    """Noise of 20 steps needs 6.4 bits of the 16; what is stored as it came is hardly smaller than 16."""
    rng = np.random.default_rng(1)
    time_s = np.arange(4000) / 1000
    columns = [
        np.rint(8000 * np.sin(time_s + phase) + rng.normal(0, 20, 4000)).astype("<i2") for phase in range(6)
    ]
    blocks = [
        b"".join(column[start : start + rows].tobytes() for column in columns)
        for start in range(0, 4000, rows)
    ]
    runs = runs_of(("<i2",) * 6)
    assert _stored_bytes(blocks) > least_gain * _stored_bytes([encode(block, runs) for block in blocks])


def test_what_is_no_whole_row_is_kept_as_it_came_and_says_so() -> None:
    runs = runs_of(("<i2", "<f8"))
    for payload in (b"", b"odd", bytes(21)):
        coded = encode(payload, runs)
        assert coded[0] == AS_IT_CAME
        assert decode(coded, runs) == payload


@settings(deadline=None, max_examples=100)
@given(damaged=st.binary(max_size=60))
def test_damage_is_refused_or_decodes_to_some_rows(damaged: bytes) -> None:
    for payload in (damaged, bytes([VERSION]) + damaged):
        with contextlib.suppress(PayloadError, ValueError):
            assert isinstance(decode(payload, runs_of(("<i2", "<i2", "<f4"))), bytes)
