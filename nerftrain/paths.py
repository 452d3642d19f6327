"""Where the files that ship beside the code are, and how a command names others.

Free of torch.
"""

import atexit
import logging
import os
import re
import shlex
import shutil
import tempfile
from functools import cache
from pathlib import Path

from nerftrain.errors import UserError

_logger = logging.getLogger(__name__)
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


def check_reach(path: Path) -> None:
    """Check that one can tell whether there is anything at a path.

    Since Python 3.14 `is_dir` and its like call what cannot be looked at missing; before they raise
    what not everybody catches.

    Raises:
        UserError: rights forbid it, or no file system takes the name.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{path} cannot be read ({reason}): check its name and its rights"
        ) from None


@cache
def cache_dir() -> Path:
    """Return the user's cache: NERFTRAIN_CACHE, else nerftrain in XDG_CACHE_HOME or ~/.cache.

    Where that cannot be written, a temporary folder for this process serves, with one warning.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.environ.get("NERFTRAIN_CACHE") or Path(base) / "nerftrain")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        temporary = Path(tempfile.mkdtemp(prefix="nerftrain-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        _logger.warning(
            "the cache %s cannot be written (%s), so compiled ops last for this process only: "
            "set NERFTRAIN_CACHE to a folder that can",
            folder,
            error.strerror,
        )
        return temporary


def as_override(key: str, path: Path) -> str:
    """Write ``key=path`` as the shell and Hydra's grammar read it, whatever is in the path."""
    text = str(path)
    if not re.fullmatch(r"[\w./+@:%-]+", text, re.ASCII):
        text = '"' + text.replace('"', '\\"') + '"'
    return shlex.quote(f"{key}={text}")
