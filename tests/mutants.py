"""Derive broken files from intact ones, reproducibly, as a fuzzer would."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

EXTREMES = tuple(bytes.fromhex(word) for word in "00000000 ffffffff 7fffffff 80000000 00000001 ffffff7f".split())
"""Sizes and counts at the limits of 32 bits, in both byte orders."""
HEAD = 512
"""Number of bytes at the start of a file that contain headers; they are changed more often than the rest."""


def mutants(sources: Sequence[Path], *, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of `count` files, each a source with one to six changes.

    Args:
        sources: original files, used in turn; empty ones are skipped.
        count: number of mutants.
        seed: random seed.
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
    elif kind == 2:  # an extreme size or count
        data[at : at + 4] = chance.choice(EXTREMES)
    elif kind == 3:  # cut off
        del data[max(1, at) :]
    elif kind == 4:  # a missing piece
        del data[at : at + length]
    else:  # a repeated piece
        data[at:at] = data[at : at + length]
