"""A NeRF trainer for any machine: ``nerftrain scene=lego model=ngp sampler=occgrid``.

From a script::

    import nerftrain

    run = nerftrain.assemble(nerftrain.compose(["scene=demo", "trainer.steps=1000"]))
    nerftrain.train(run)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nerftrain.errors import UserError

if TYPE_CHECKING:
    from nerftrain.config import assemble, compose
    from nerftrain.trainer import train

__version__ = "0.1.0"
__all__ = ["UserError", "__version__", "assemble", "compose", "train"]

_HOMES = {"compose": "config", "assemble": "config", "train": "trainer"}


def __getattr__(name: str) -> Any:
    """Import a name at its first use: the command line must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
