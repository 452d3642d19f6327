"""``nerftrain data get``, ``pose``, ``phone`` and ``check``; the first is free of torch."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from nerftrain import usage
from nerftrain.errors import UserError
from nerftrain.paths import as_override
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
        download.get(names, Path(root).expanduser(), _say)
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


def _pose(arguments: Sequence[str], parse: Parse, complain: Complain) -> int:
    parser = argparse.ArgumentParser(
        "nerftrain data pose",
        description="Find the cameras of photographs, or of a film, by COLMAP: a folder to train.",
    )
    parser.add_argument("photos", metavar="PHOTOS", help="a folder of photographs, or a film")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="the scene's folder (that of the photographs; of a film, one beside it of its name)",
    )
    parser.add_argument(
        "--nested",
        action="store_true",
        help="photographs in folders of that folder, too, such as one for each camera",
    )
    parser.add_argument(
        "--masks",
        metavar="PATH",
        help="a folder of masks named as the photographs: what is black there (what moves with the "
        "camera, the rim of a fisheye's image) is not looked at",
    )
    parser.add_argument(
        "--frames", metavar="N", type=_at_least_three, help="to take of a film (150)"
    )
    parser.add_argument(
        "--pairs",
        metavar="KIND",
        default="auto",
        choices=("auto", "all", "neighbours"),
        help="to match: all, or neighbours by name (auto: all of up to 200 photographs, neighbours "
        "in a film and beyond)",
    )
    parser.add_argument(
        "--camera",
        metavar="NAME",
        type=str.upper,
        default="OPENCV",
        choices=_CAMERAS,
        help=f"the kind of lens, one of {' '.join(_CAMERAS)} (default %(default)s)",
    )
    parsed = parse(parser, arguments)
    from nerftrain.data.posing import pose

    source, out = Path(parsed.photos).expanduser(), parsed.out and Path(parsed.out).expanduser()
    try:
        asked = parsed.frames, parsed.pairs, parsed.camera
        masks = parsed.masks and Path(parsed.masks).expanduser()
        posed = pose(source, out, *asked, _say, nested=parsed.nested, masks=masks)
    except KeyboardInterrupt:
        again = shlex.join(["nerftrain", "data", "pose", *arguments])
        complain(f"stopped; what was computed is kept, and the same command goes on: {again}")
        raise
    _say("\n".join(posed.lines()))
    for warning in posed.warnings():
        complain(warning)
    return 0


def _phone(arguments: Sequence[str], parse: Parse, complain: Complain) -> int:
    del complain
    parser = argparse.ArgumentParser(
        "nerftrain data phone",
        description="Take the cameras that a telephone's app has found while it filmed (Polycam's "
        "Raw Data; Record3D's EXR and RGB frames, or its .r3d unpacked): a folder to train.",
    )
    parser.add_argument("path", metavar="PATH", help="the folder of what the app exported")
    parser.add_argument(
        "--frames",
        metavar="N",
        type=_at_least_three,
        default=300,
        help="at most, the sharpest of those near each other (default %(default)s)",
    )
    parsed = parse(parser, arguments)
    from nerftrain.data.phones import convert

    folder = Path(parsed.path).expanduser()
    lines, advised = convert(folder, parsed.frames)
    train = ["nerftrain", "scene=transforms", as_override("scene.root", folder), *advised]
    _say("\n".join([*lines, f"  train it: {' '.join(train)}"]))
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _at_least_three(text: str) -> int:
    value = int(text)
    if value < 3:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 3")
    return value


_at_least_three.__name__ = "whole number"  # argparse names the type in its message

# What colmap_model reads; not imported from there, for torch.
_PINHOLES = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
_FISHEYES = ("SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "OPENCV_FISHEYE")
_CAMERAS = (*_PINHOLES, *_FISHEYES, "EQUIRECTANGULAR")

_VERBS: dict[str, Callable[[Sequence[str], Parse, Complain], int]] = {
    "get": _get,
    "pose": _pose,
    "phone": _phone,
    "check": _check,
}
