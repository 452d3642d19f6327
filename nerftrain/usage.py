"""The help page, read off the presets' own comments; no torch and no Hydra: it is instant."""

from __future__ import annotations

import re
from pathlib import Path

from nerftrain.data.datasets import ARCHIVES
from nerftrain.paths import data_dir

_HEAD = """\
nerftrain {version}: train a radiance field

Usage:
  nerftrain [key=value ...]           train; without arguments the procedural demo scene
  nerftrain -m key=value,value ...    train every combination (a sweep)
  nerftrain eval RUN                  judge a run's checkpoint on its test views
  nerftrain render RUN                render a split, or a video along a path
  nerftrain view RUN                  look around in it, in a browser
  nerftrain export RUN                write what it has learnt as a coloured mesh, or as points
  nerftrain resume RUN [key=value ..] go on with an interrupted run
  nerftrain data get NAME             fetch a public scene into the data root
  nerftrain data pose PHOTOS          find the cameras of photographs, or of a film (COLMAP)
  nerftrain data phone PATH           take the cameras that a telephone's app has found
  nerftrain data check PATH           say what a folder of images is and all that is wrong with it
  nerftrain doctor                    show the machine, and try what was built for it
  nerftrain doctor --build all        compile ahead, for every GPU, and show what the kernels use

RUN is a run's folder; `nerftrain eval --help` and so on list the options.
"""
_TAIL = """\
Any key of a choice can be set as well, e.g. trainer.steps=5000; `nerftrain --cfg job` lists all.

Examples:
  nerftrain scene=lego scene.root=PATH/nerf_synthetic/lego
  nerftrain scene=lego data_root=PATH model=ngp sampler=occgrid seed=7 trainer.steps=2000
  nerftrain -m scene=lego,chair,drums model=ngp,mlp data_root=PATH

Flags:
  --cfg job            print the config instead of running
  --config-dir PATH    a folder of presets of your own
  --info, --hydra-help what else Hydra offers
  --version            print the version

Tab completion, for this shell (a line for ~/.bashrc or ~/.zshrc; fish: -sc install=fish | source):
  eval "$(nerftrain -sc install=bash)"
"""

DATA = """\
Usage:
  nerftrain data get NAME ... [data_root=PATH]  fetch public scenes, or the rest of them
  nerftrain data pose PHOTOS [--out PATH]       find the cameras of photographs, or of a film
  nerftrain data phone PATH [--frames N]        take the cameras of Polycam or Record3D
  nerftrain data check PATH [--out PATH]        read a folder as training would, and draw it

`nerftrain data get --help` and so on list the options.

Examples:
  nerftrain data get lego mip360/garden data_root=PATH
  nerftrain data get dnerf                      all its scenes, into NERFTRAIN_DATA
  nerftrain data pose PATH/film.mp4 --frames 200
  nerftrain data check PATH/blender/lego"""


def data_names() -> str:
    """List the groups and scenes that can be fetched."""
    groups: dict[str, list[str]] = {}
    for archive in ARCHIVES:
        groups.setdefault(archive.group, []).extend(archive.scenes)
    texts = []
    for group, scenes in groups.items():
        prefix = "" if group == "blender" else f"{group}/"
        texts.append(f"{group} or {' '.join(prefix + scene for scene in sorted(scenes))}")
    return "; ".join(texts)


def help_page(version: str) -> str:
    """Write the help page: commands, every preset of every group, the other keys, examples."""
    conf = data_dir("conf")
    config = (conf / "config.yaml").read_text(encoding="utf-8")
    defaults = dict(re.findall(r"^  - (\w+): (\w+)$", config, flags=re.MULTILINE))
    groups = [group for group in defaults if (conf / group).is_dir()]
    groups += sorted(f.name for f in conf.iterdir() if f.is_dir() and f.name not in groups)
    sections = [_section(conf / group, defaults.get(group)) for group in groups]
    sections = [section for section in sections if section]
    return "\n".join([_HEAD.format(version=version), *sections, _other_keys(config), _TAIL])


def commands_like(word: str) -> list[str]:
    """List what a first argument could mean: a bare ``lego`` is ``scene=lego``.

    A preset in a folder of its group, such as ``scene=dnerf/lego``, counts where there is no other.
    """
    conf = data_dir("conf")
    files = (file.relative_to(conf).with_suffix("") for file in conf.glob("*/**/*.yaml"))
    found = [file for file in files if file.name == word]
    nearest = [file for file in found if len(file.parts) == 2] or found
    return [file.as_posix().replace("/", "=", 1) for file in nearest]


def _section(group: Path, default: str | None) -> str:
    """List the presets of a group, the default first; nothing for an empty group."""
    files = sorted(group.rglob("*.yaml"), key=lambda file: (file.stem != default, str(file)))
    lines = [f"{group.name}="] if files else []
    alike = _alike(group, files)
    for file in files:
        if file.parent in alike:
            kind, names = alike[file.parent]
            if file.stem == names[0]:
                folder = file.parent.relative_to(group).as_posix()
                lines += [f"  {folder}/{{{','.join(names)}}}", f"  {'':<16} {kind}"]
            continue
        name = file.relative_to(group).with_suffix("").as_posix()
        mark = " (default)" if name == default else ""
        lines.append(f"  {name:<16} {_first_comment(file)}{mark}")
    return "\n".join([*lines, ""]) if lines else ""


def _alike(group: Path, files: list[Path]) -> dict[Path, tuple[str, list[str]]]:
    """Find the folders of presets like "Bonsai (mip-NeRF 360)", all with one text in brackets.

    Returns that text and the presets' names by folder: nine lines would say no more than one.
    """
    kinds: dict[Path, set[str]] = {}
    for file in files:
        bracket = re.fullmatch(r"\w+ \((.*)\)", _first_comment(file))
        kinds.setdefault(file.parent, set()).add(bracket[1] if bracket else "")
    return {
        folder: (next(iter(found)), [file.stem for file in files if file.parent == folder])
        for folder, found in kinds.items()
        if folder != group and len(found) == 1 and "" not in found
    }


def _first_comment(file: Path) -> str:
    with file.open(encoding="utf-8") as lines:
        first = lines.readline()
        if first.startswith("# @package"):  # Hydra wants it on top
            first = lines.readline()
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _other_keys(config: str) -> str:
    """Describe the top-level ``key: value  # comment`` lines."""
    found = re.findall(r"^(\w+): (\S+) +# (.*)$", config, flags=re.MULTILINE)
    lines = ["Other keys:"]
    for key, value, comment in found:
        shown = "" if value.startswith(("null", "[]", "$")) else f" (default {value})"
        lines.append(f"  {key + '=':<16} {comment}{shown}")
    return "\n".join(lines) + "\n"
