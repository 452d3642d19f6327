"""Imports point down, as the design lays the modules out; read off the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nerftrain"

# From the bottom up; a module may import its own layer and those below it.
LAYERS = [
    {"errors", "paths", "memory"},
    {"bounds", "checks"},
    {"types", "schema", "ops"},
    {"spacing", "refinement"},
    {
        "cameras",
        "eyes",
        "lens",
        "losses",
        "metrics",
        "optimizers",
        "recording",
        "runtime",
        "schedules",
        "models.encodings",
    },
    {"models", "samplers", "scenes", "nerfacc"},
    {"rendering", "shots"},
    {
        "checkpoint",
        "data",
        "doctor",
        "evaluation",
        "export",
        "mesh",
        "report",
        "sweep",
        "texture",
        "video",
        "viewer",
        "weights_and_biases",
    },
    {"trainer"},
    {"usage", "composition", "config", "data_commands", "launch", "cli", "__main__", ""},
]
ALTERNATIVES = {"models", "samplers", "scenes"}  # whose files do not know each other
SHARED = {  # by the alternatives of a package
    "models.dynamic",
    "models.encodings",
    "models.tcnn",
    "scenes.depths",
    "scenes.frames",
    "scenes.images",
    "scenes.masks",
    "scenes.photos",
    "scenes.split_folders",
    "scenes.times",
    "scenes.toys",
    "scenes.world",
}
ALLOWED = {
    ("scenes.demo", "scenes.blender"),  # the demo is written in Blender's layout
    ("scenes.colmap", "scenes.colmap_model"),  # one kind of scene in three files
    ("scenes.colmap", "scenes.colmap_points"),
    ("scenes.colmap_points", "scenes.colmap_model"),
    ("scenes.transforms", "scenes.calibration"),  # and another
    ("scenes.transforms", "scenes.placement"),
}
KNOW_HYDRA = {"composition", "config", "cli", "launch"}
# Compiling takes seconds and comes before there is a report: the library says so itself.
MAY_PRINT = {"report", "trainer", "data_commands", "launch", "cli", "ops.library", "ops.proof"}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def layer(module: str) -> int:
    """Find the layer of a module, or of the package that it is in."""
    for name in (module, module.partition(".")[0]):
        for height, names in enumerate(LAYERS):
            if name in names:
                return height
    pytest.fail(f"nerftrain.{module} has no place in LAYERS")


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk all nodes but those that only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from runtime_nodes(child)


def imports(file: Path) -> Iterator[str]:
    for node in runtime_nodes(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (_imported(node.module or "", alias.name) for alias in node.names)


def _imported(module: str, name: str) -> str:
    """Tell a module imported from its package from a name imported from a module."""
    inner = PACKAGE.joinpath(*module.split(".")[1:], name)
    is_module = module.startswith("nerftrain") and (
        inner.with_suffix(".py").is_file() or inner.is_dir()
    )
    return f"{module}.{name}" if is_module else module


def own_imports(file: Path) -> set[str]:
    names = {name for name in imports(file) if name.partition(".")[0] == "nerftrain"}
    return {name.partition(".")[2] for name in names}


def test_the_walk_sees_the_package():
    assert {"errors", "types", "cli", ""} <= {module_name(file) for file in FILES}
    assert "errors" in own_imports(PACKAGE / "schema.py")
    assert "schema" in own_imports(PACKAGE / "config.py")


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_point_down(file: Path):
    height = layer(module_name(file))
    # `import nerftrain` gives the version and lazy names: it hangs on no module above.
    above = {name for name in own_imports(file) if name and layer(name) > height}
    assert not above, f"nerftrain.{module_name(file)} imports from above: {sorted(above)}"


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_alternatives_do_not_know_each_other(file: Path):
    module = module_name(file)
    package = module.partition(".")[0]
    if package not in ALTERNATIVES or module == package:
        return
    siblings = {
        name
        for name in own_imports(file)
        if name.startswith(f"{package}.") and name not in SHARED and (module, name) not in ALLOWED
    }
    assert not siblings, f"nerftrain.{module} imports its siblings {sorted(siblings)}"


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_only_the_configuration_knows_hydra(file: Path):
    found = {name for name in imports(file) if name.partition(".")[0] in ("hydra", "omegaconf")}
    assert not found or module_name(file) in KNOW_HYDRA


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_nothing_below_the_report_prints(file: Path):
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert not calls or module_name(file) in MAY_PRINT, f"{file} prints in lines {calls}"
