"""Broken files from good ones, the same every time: what a fuzzer would feed to a decoder."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

EXTREMES = tuple(bytes.fromhex(word) for word in "00000000 ffffffff 7fffffff 80000000 00000001 ffffff7f".split())
"""Sizes and counts at the edge of what 32 bits hold, in either byte order."""
HEAD = 512
"""Headers stand here, and are changed more often than the rest."""


def mutants(sources: Sequence[Path], *, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of `count` files, each a source with one to six changes.

    Args:
        sources: files to begin with, taken in turn; empty ones are left out.
        count: how many.
        seed: another one gives other mutants.
    """
    chance = random.Random(seed)
    originals = [(path, data) for path in sources if (data := path.read_bytes())]
    for i in range(count):
        path, data = originals[i % len(originals)]
        changed = bytearray(data)
        for _ in range(chance.randint(1, 6)):
            _change(changed, chance)
        yield f"{i:05}{path.suffix}", bytes(changed)


def _change(data: bytearray, chance: random.Random) -> None:
    end = len(data)
    at = chance.randrange(min(end, HEAD) if chance.random() < 0.5 else end) if end else 0
    length = min(chance.choice((1, 2, 4, 16, 256, 4096)), end - at)
    kind = chance.randrange(6)
    if kind == 0:  # single bits
        for _ in range(chance.choice((1, 1, 4, 64)) if end else 0):
            data[chance.randrange(at, end)] ^= 1 << chance.randrange(8)
    elif kind == 1:  # noise
        data[at : at + length] = chance.randbytes(length)
    elif kind == 2:  # a size or a count gone wild
        data[at : at + 4] = chance.choice(EXTREMES)
    elif kind == 3:  # cut off
        del data[max(1, at) :]
    elif kind == 4:  # a piece missing
        del data[at : at + length]
    else:  # a piece twice
        data[at:at] = data[at : at + length]
