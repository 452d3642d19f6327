from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from nerftrain.paths import as_override


@pytest.mark.parametrize(
    "text",
    [
        "/data/lego",
        "relative/a-b_c.d",
        "/my ph\u00f6tos (1)",
        "it's",
        'a "quoted" one',
        "[list]",
        "{a: b}",
        "a,b",
        "$HOME",
        "a=b",
        "~x",
        "#1",
    ],
)
def test_a_path_reaches_the_config_as_it_is(text: str):
    (word,) = shlex.split(as_override("scene.root", Path(text)))
    (override,) = OverridesParser.create().parse_overrides([word])
    assert override.key_or_group == "scene.root"
    assert str(override.value()) == text
    assert not override.is_sweep_override()


def test_a_plain_path_stays_plain():
    assert as_override("scene.root", Path("/data/lego")) == "scene.root=/data/lego"
