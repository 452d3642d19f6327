"""Checks that numbers of a config are in their range.

Upper ones are generous: beyond them memory runs out, or a place too many has been typed.
"""

from __future__ import annotations

from nerftrain.errors import UserError

MOST_WIDTH = 4096  # of a layer
MOST_LAYERS = 64
MOST_FREQUENCIES = 32  # octaves: float32 tells 24 apart
MOST_SAMPLES = 65536  # per ray
MOST_BUDGET = 2**26  # samples of a step
MOST_RAYS = 2**24  # of a step
MOST_THREADS = 1024
MOST_PIXELS = 8192  # of the longer side of what `view` shows
MOST_FRAMES = 100_000  # of a film: an hour of it


def check_counts(at_most: int | None = None, /, **counts: int) -> None:
    """Raise UserError for a number of something that is below one, or above what is sensible."""
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name}={value}: must be at least 1")
        check_at_most(at_most, **{name: value})


def check_at_most(most: float | None, /, **values: float) -> None:
    """Raise UserError for a number that is above what is sensible; None: anything is."""
    for name, value in values.items():
        if most is not None and value > most:
            raise UserError(f"{name}={value}: must be at most {most}")


def check_shares(**shares: float) -> None:
    """Raise UserError for a share that is negative, or that nothing is above."""
    for name, value in shares.items():
        if value < 0:
            raise UserError(f"{name}={value}: must not be negative")
        if value >= 1:
            raise UserError(f"{name}={value}: must be less than 1")
