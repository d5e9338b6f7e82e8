"""Inputs that are almost right: bytes flipped, cut, doubled, set to extreme lengths, nested thousands deep."""

import os
import random

INPUTS = int(os.environ.get("FUZZ_INPUTS", "300"))
GROWTH_KB = 200 << 10
_EXTREMES = (b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7, b"\x00" * 5 + b"\x01\x00\x00", b"\xff" * 4)
NESTS = (b"[" * 5000, b'{"a":' * 5000, b"\x91" * 5000, b"{a: " * 3000, b"- " * 3000, b"devices: &a [*a]")


def mutated(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del found[at : at + rng.randint(1, 64)]
        elif kind == 2:
            found[at:at] = found[at : at + rng.randint(1, 256)]
        elif kind == 3:
            extreme = rng.choice(_EXTREMES)
            found[at : at + len(extreme)] = extreme
        elif kind == 4:
            del found[at:]
        elif rng.random() < 0.1:
            found[at:at] = rng.choice(NESTS)
    return bytes(found)
