"""How much memory is free, and whether it has run out.

What cannot fit is refused before the system ends the process.

Free of torch.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from nerftrain.errors import UserError

SHARE = 0.9  # of what is free, that images may take: they are not alone

# How torch, CUDA and C++ call it.
_SIGNS = ("out of memory", "not enough memory", "Cannot allocate memory", "bad_alloc")
# Through its stable ABI torch only tells which call of an op failed. These do by want of memory.
_ALLOCATING = ("new_empty", "new_zeros", "clone", "empty", "contiguous")

_GROUP = Path("/sys/fs/cgroup")  # of this process, where it has one
_KNOWN = Path("/proc/meminfo")


def has_run_out(error: BaseException) -> bool:
    """Say whether an error is that of memory which does not suffice, by whichever name."""
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if any(sign in text for sign in _SIGNS):
        return True
    return "API call failed" in text and any(f'"aten::{name}"' in text for name in _ALLOCATING)


def free_memory() -> int | None:
    """Return how many bytes this process may still take; None: not known.

    Where the system only tells how much there is altogether (macOS), it is that.
    """
    system = _available()
    group = _left_of_group()
    return min(system, group) if system is not None and group is not None else system or group


def _available() -> int | None:
    try:
        for line in _KNOWN.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _left_of_group() -> int | None:
    """Return what a container's limit leaves; files that were read can be forgotten."""
    try:
        limit = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
        kept = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        return limit - used + int(kept.get("inactive_file", 0))
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return None


def check_images_fit(num_bytes: int) -> None:
    """Check that images of so many bytes fit into memory.

    Raises:
        UserError: they do not.
    """
    free = free_memory()
    if free is None or num_bytes <= SHARE * free:
        return
    smaller = math.ceil(math.sqrt(num_bytes / max(free / 2, 1)))
    raise UserError(
        f"the images take {_in_words(num_bytes)} of memory, of which {_in_words(free)} are free: "
        f"give a larger scene.downscale (images {smaller} times smaller take "
        f"{_in_words(num_bytes / smaller**2)})"
    )


def _in_words(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
