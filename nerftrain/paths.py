"""Where the files that ship beside the code are. Imports nothing of the project."""

import os
import tempfile
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_dir(name: str) -> Path:
    """Find the folder ``conf`` or ``csrc``: inside the package of a wheel, beside it in a checkout.

    Raises:
        FileNotFoundError: the installation lacks the folder.
    """
    for root in (_PACKAGE, _PACKAGE.parent):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(
        f"{name}/ is neither in {_PACKAGE} nor beside it: install nerftrain again"
    )


@cache
def cache_dir() -> Path:
    """Return the user's cache: NERFTRAIN_CACHE, else nerftrain in XDG_CACHE_HOME or ~/.cache.

    Where that cannot be written, a temporary folder for this process serves.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("NERFTRAIN_CACHE") or Path(base) / "nerftrain")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="nerftrain-"))
