"""``nerftrain data get`` and ``nerftrain data check``; the first is free of torch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from nerftrain import usage
from nerftrain.errors import UserError
from nerftrain.schema import suggestion

_MISTAKE = 2  # exit status

Parse = Callable[[argparse.ArgumentParser, Sequence[str]], argparse.Namespace]
Complain = Callable[[str], None]


def run(arguments: Sequence[str], parse: Parse, complain: Complain) -> int:
    """Run ``nerftrain data ARGUMENTS`` and return the exit status.

    Args:
        arguments: after ``data``.
        parse: parses flags with errors of one line.
        complain: shows the user a line on stderr.

    Raises:
        UserError: a mistake in the arguments, or in what they name.
    """
    first = arguments[0] if arguments else ""
    if first in ("--help", "-h"):
        print(usage.DATA)
        return 0
    if first not in _VERBS:
        named = f"data {first}: no such command; " if first else "data: what of it? "
        raise UserError(f"{named}{suggestion(first, _VERBS, 'data ')} (see nerftrain data --help)")
    return _VERBS[first](arguments[1:], parse, complain)


def _get(arguments: Sequence[str], parse: Parse, complain: Complain) -> int:
    usage_line = "nerftrain data get NAME ... [data_root=PATH]"
    parser = argparse.ArgumentParser(
        "nerftrain data get", usage=usage_line, description="Fetch public scenes."
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help=usage.data_names())
    parser.add_argument(
        "--root", metavar="PATH", help="the data root, as data_root= (default NERFTRAIN_DATA)"
    )
    parsed = parse(parser, arguments)
    names, root = _names_and_root(parsed.names)
    root = root or parsed.root or os.environ.get("NERFTRAIN_DATA")
    if not names:
        raise UserError(f"data get: which scenes? {usage.data_names()}")
    if not root:
        raise UserError(
            "data get: where to? give data_root=PATH, or set NERFTRAIN_DATA to the folder of scenes"
        )
    from nerftrain.data import download

    try:
        download.get(names, Path(root).expanduser(), lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        again = f"nerftrain data get {' '.join(names)} data_root={root}"
        complain(f"stopped; what has arrived is kept, and the same command goes on: {again}")
        raise
    return 0


def _names_and_root(words: Sequence[str]) -> tuple[list[str], str | None]:
    names, root = [], None
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key != "data_root":
            raise UserError(f"{word}: data get takes no {key}=; only data_root=PATH")
        if equals:
            root = value
        else:
            names.append(word)
    return names, root


def _check(arguments: Sequence[str], parse: Parse, complain: Complain) -> int:
    parser = argparse.ArgumentParser(
        "nerftrain data check",
        description="Read a folder as training would, list all that is wrong with it, draw it.",
    )
    parser.add_argument("path", metavar="PATH", help="the folder of a scene of any supported kind")
    parser.add_argument("--out", metavar="PATH", help="for the pictures (outputs/data/NAME)")
    parser.add_argument(
        "--kind", help="dnerf, blender, colmap or transforms, where it could be several"
    )
    parsed = parse(parser, arguments)
    folder = Path(parsed.path).expanduser()
    out = Path(parsed.out or Path("outputs") / "data" / folder.resolve().name).expanduser()
    from nerftrain.config import scene_plan
    from nerftrain.data.inspection import inspect

    found = inspect(folder, out, scene_plan, parsed.kind)
    print("\n".join(found.lines()), flush=True)
    for fault in found.faults:
        complain(fault)
    return _MISTAKE if found.faults else 0


_VERBS: dict[str, Callable[[Sequence[str], Parse, Complain], int]] = {
    "get": _get,
    "check": _check,
}
