"""What the table of public datasets says fits what the presets and the loaders look for."""

import re
from pathlib import Path

import pytest

from nerftrain.data.datasets import ARCHIVES, look_up
from nerftrain.errors import UserError

CONF = Path(__file__).parents[2] / "conf" / "scene"


def names(*words: str) -> list[str]:
    return [wanted.name for wanted in look_up(words)]


def refused(word: str) -> str:
    with pytest.raises(UserError) as caught:
        look_up([word])
    return str(caught.value)


def test_a_name_means_the_scene_of_its_preset():
    assert names("lego", "mip360/garden", "dnerf/lego") == ["lego", "mip360/garden", "dnerf/lego"]
    assert names("blender/lego", "lego") == ["lego"]


def test_a_group_means_all_its_scenes():
    assert (len(names("blender")), len(names("mip360")), len(names("dnerf"))) == (8, 9, 8)


def test_every_fetched_scene_has_a_preset_and_every_preset_of_a_group_can_be_fetched():
    fetched = set(names("blender", "mip360", "dnerf"))
    general = {"blender", "demo", "dnerf", "colmap", "transforms"}
    files = {p.relative_to(CONF).with_suffix("").as_posix() for p in CONF.rglob("*.yaml")}
    assert files - general <= fetched
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    wanted = {name for name in fetched if "/" not in name or name.partition("/")[0] in groups}
    assert wanted <= files


def test_what_was_meant_is_named():
    assert "did you mean mip360/garden?" in refused("garden")
    assert "did you mean mip360" in refused("mip36")
    assert "lego" in refused("logo")
    assert "blender, mip360, dnerf, chair" in refused("xyzzy")


def test_addresses_are_secure_and_hashes_are_hashes():
    for archive in ARCHIVES:
        assert all(url.startswith("https://") for url in archive.urls)
        assert archive.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", archive.sha256)


def test_a_fetched_scene_lies_where_its_loader_looks():
    from nerftrain.scenes import blender, colmap, dnerf

    places = {
        "blender": blender.LAYOUT.groups,
        "dnerf": dnerf.LAYOUT.groups,
        "mip360": colmap.GROUPS,
    }
    for archive in ARCHIVES:
        assert {archive.group, *archive.elsewhere} <= set(places[archive.group])
