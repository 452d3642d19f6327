"""Which public archive holds which scene, and where a scene lies under the data root.

Data and lookup only, free of torch. An address, a size or a hash stands here because its publisher
or two independent users of the file state it; what nobody states is None.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nerftrain.errors import UserError

DOWNLOADS = "downloads"  # the folder of archives under the data root


@dataclass(frozen=True)
class Archive:
    """A public archive of scenes."""

    file_name: str  # what it is called under the data root
    urls: tuple[str, ...]  # of the same bytes, in the order in which they are tried
    page: str  # where its publisher describes it
    group: str  # the scenes' folder under the data root
    scenes: tuple[str, ...]
    inside: str  # the scenes' folder in the archive, "" or "NAME/"
    mark: str  # a file or folder that every one of the scenes has
    elsewhere: tuple[str, ...] = ()  # other folders of the data root where loaders find the scenes
    size: int | None = None  # bytes
    sha256: str | None = None

    def folder(self, scene: str, root: Path) -> Path:
        """Name the folder of a scene under the data root."""
        return root / self.group / scene

    def find(self, scene: str, root: Path) -> Path | None:
        """Find a scene that lies under the data root already."""
        for place in (self.group, *self.elsewhere):
            if (root / place / scene / self.mark).exists():
                return root / place / scene
        return None


@dataclass(frozen=True)
class Wanted:
    """A scene and the archive that holds it."""

    archive: Archive
    scene: str

    @property
    def name(self) -> str:
        """Return the name that it goes by on the command line."""
        return _preset(self.archive, self.scene)


ARCHIVES = (
    # The address on Google Drive is the authors'. The mirror's file has the same hash, and a server
    # that needs no confirmation and no quota. Hash: nerfbaselines (of the file on Google Drive) and
    # the mirror, https://github.com/yxlao/nerfmirror.
    Archive(
        file_name="nerf_synthetic.zip",
        urls=(
            "https://github.com/yxlao/nerfmirror/releases/download/20220618/nerf_synthetic.zip",
            "https://drive.usercontent.google.com/download"
            "?id=18JxhpWD-4ZmuFKLzKlAw-w5PpzZxXOcG&export=download&confirm=t",
        ),
        page="https://www.matthewtancik.com/nerf",
        group="blender",
        scenes=("chair", "drums", "ficus", "hotdog", "lego", "materials", "mic", "ship"),
        inside="nerf_synthetic/",
        mark="transforms_train.json",
        elsewhere=("nerf_synthetic", "blender_synthetic", ""),
        sha256="f01fd1b4ab045b0d453917346f26f898657bb5bec4834b95fdad1f361826e45e",
    ),
    Archive(
        file_name="360_v2.zip",
        urls=("https://storage.googleapis.com/gresearch/refraw360/360_v2.zip",),
        page="https://jonbarron.info/mipnerf360",
        group="mip360",
        scenes=("bicycle", "bonsai", "counter", "garden", "kitchen", "room", "stump"),
        inside="",
        mark="sparse/0",
        elsewhere=("360_v2",),
        size=12_535_427_936,
    ),
    Archive(
        file_name="360_extra_scenes.zip",
        urls=("https://storage.googleapis.com/gresearch/refraw360/360_extra_scenes.zip",),
        page="https://jonbarron.info/mipnerf360",
        group="mip360",
        scenes=("flowers", "treehill"),
        inside="",
        mark="sparse/0",
        elsewhere=("360_v2",),
        size=4_488_140_217,
    ),
    # Both addresses are in the authors' README, https://github.com/albertpumarola/D-NeRF.
    Archive(
        file_name="dnerf_data.zip",
        urls=(
            "https://www.dropbox.com/s/0bf6fl0ye2vz3vr/data.zip?dl=1",
            "https://drive.usercontent.google.com/download"
            "?id=19Na95wk0uikquivC7uKWVqllmTx-mBHt&export=download&confirm=t",
        ),
        page="https://github.com/albertpumarola/D-NeRF",
        group="dnerf",
        scenes=(
            "bouncingballs",
            "hellwarrior",
            "hook",
            "jumpingjacks",
            "lego",
            "mutant",
            "standup",
            "trex",
        ),
        inside="data/",
        mark="transforms_train.json",
    ),
)


def look_up(names: Sequence[str], archives: Sequence[Archive] = ARCHIVES) -> list[Wanted]:
    """Find the scenes that names of presets (``lego``, ``mip360/garden``) and groups mean.

    Raises:
        UserError: a name means none.
    """
    every = [Wanted(archive, scene) for archive in archives for scene in archive.scenes]
    found: dict[str, Wanted] = {}
    for name in names:
        chosen = [w for w in every if name.strip("/") in (w.name, w.archive.group, _long(w))]
        if not chosen:
            raise UserError(_unknown(name, every))
        found |= {wanted.name: wanted for wanted in chosen}
    return list(found.values())


def _preset(archive: Archive, scene: str) -> str:
    return scene if archive.group == "blender" else f"{archive.group}/{scene}"


def _long(wanted: Wanted) -> str:
    return f"{wanted.archive.group}/{wanted.scene}"


def _unknown(name: str, every: Sequence[Wanted]) -> str:
    groups = list(dict.fromkeys(wanted.archive.group for wanted in every))
    # A scene without its group first; then what is spelled alike.
    alike = [wanted.name for wanted in every if wanted.scene == name]
    spelled = difflib.get_close_matches(name, [w.name for w in every] + groups, 3)
    spelled += [w.name for w in every if difflib.get_close_matches(name, [w.scene])]
    alike = alike or list(dict.fromkeys(spelled))
    remedy = f"did you mean {' or '.join(alike[:3])}?" if alike else "give a scene or a group:"
    scenes = ", ".join(wanted.name for wanted in every)
    listing = "" if alike else f" {', '.join(groups)}, {scenes}"
    return f"{name}: no public dataset of that name; {remedy}{listing}"
