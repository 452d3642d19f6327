"""The README's commands are the ones that are run, and what it names exists."""

import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_ci_runs_the_readmes_test_command() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    command = ".venv/bin/pip install -c constraints.txt -e '.[test]' && .venv/bin/pytest"
    assert command in README
    assert command in ci.splitlines()


def test_every_choice_that_the_readme_names_exists() -> None:
    named = set(
        re.findall(r"\b(scene|model|sampler|scheduler|background|runtime)=([a-z0-9_,/]+)", README)
    )
    assert named
    for group, options in named:
        for option in options.split(","):
            assert (ROOT / "conf" / group / f"{option}.yaml").is_file(), f"{group}={option}"


def test_every_file_that_the_documents_link_to_exists() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("preset", sorted(ROOT.glob("conf/*/*.yaml")), ids=lambda p: p.stem)
def test_every_preset_opens_with_a_line_that_says_what_it_is(preset: Path) -> None:
    first = preset.read_text().removeprefix("# @package _global_\n").splitlines()[0]
    assert re.fullmatch(r"# \S.{10,}", first)


def test_what_is_installed_has_a_lowest_version_that_the_tested_one_keeps() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = {r.name: next(iter(r.specifier)).version for r in map(Requirement, lines)}
    needed = [Requirement(line) for line in requires("nerftrain") or []]
    for requirement in needed:
        extras = re.findall(r'extra == "(\w+)"', str(requirement.marker))
        if requirement.name == "nerftrain" or set(extras) & {"test", "cuda", "lpips"}:
            continue
        assert {s.operator for s in requirement.specifier} & {">=", "=="}, requirement.name
        assert requirement.specifier.contains(tested[requirement.name]), requirement.name


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15"])
def test_every_python_is_held_to_one_version_of_a_package(python: str) -> None:
    lines = map(Requirement, (ROOT / "constraints.txt").read_text().splitlines())
    held = [r.name for r in lines if not r.marker or r.marker.evaluate({"python_version": python})]
    assert len(held) == len(set(held))
    assert {"torch", "hydra-core"} <= set(held)
