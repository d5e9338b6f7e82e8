"""Text files as they come back from bad disks and hasty editors."""

import random
import re

TOKENS = (
    "",
    "null",
    "[]",
    "{}",
    "-1",
    "0",
    "nan",
    "1e400",
    "x",
    "true",
    "[1, 2]",
    "{a: 1}",
    "\t",
    ": ",
    "1" * 40,
)


def damaged(text: str, rng: random.Random) -> str:
    """Return a text with one to four faults: a line lost or doubled, a word changed, the end cut off, a letter."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        lines = text.splitlines(keepends=True)
        if not lines:
            return text
        at = rng.randrange(len(lines))
        kind = rng.randrange(5)
        if kind == 0:
            text = "".join(lines[:at] + lines[at + 1 :])
        elif kind == 1:
            text = "".join([*lines[:at], rng.choice(lines), *lines[at:]])
        elif kind == 2:
            words = list(re.finditer(r"[-\w.\"]+", text))
            word = rng.choice(words) if words else None
            text = text if word is None else text[: word.start()] + rng.choice(TOKENS) + text[word.end() :]
        elif kind == 3:
            text = text[: rng.randrange(len(text) + 1)]
        else:
            cut = rng.randrange(len(text))
            text = text[:cut] + chr(rng.randrange(32, 127)) + text[cut + 1 :]
    return text
