"""The command line: exit statuses, one-line errors, nothing left behind, sweeps, verbs."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from nerftrain.cli import main
from nerftrain.errors import RunError, UserError
from nerftrain.scenes.demo import render_folder


class Device:
    def __init__(self) -> None:
        self.torch_device = "cpu"

    def start(self, seed: int) -> None:
        pass


class Part:
    def __init__(self, *, aabb: Any = None, scene: Any = None, model: Any = None) -> None:
        pass

    def to(self, device: str) -> Part:
        return self

    def parameters(self) -> list[int]:
        return []


TRAIN = {"train": SimpleNamespace(cameras=None, masks=lambda: None, valid=None)}


def load_scene(name: str, root: str | None, fault: str | None) -> SimpleNamespace:
    if fault:
        raise UserError(f"fault={fault}: no data there")
    if root is not None and not Path(root).is_dir():
        raise UserError(f"root={root}: there is no such folder")
    bounds = {"aabb": None, "contraction": "none", "near": 0.0, "far": 1.0}
    return SimpleNamespace(name=name, has_alpha=True, is_dynamic=False, splits=TRAIN, **bounds)


def background(train: str) -> SimpleNamespace:
    return SimpleNamespace(train=train)


def settings(ending: str) -> str:
    return ending


def train(run: Any, resume: bool = False, checkpoint_name: str | None = None) -> dict[str, Any]:
    """End as the trainer's one toy setting says."""
    calls.append((run, resume))
    chosen.append(checkpoint_name)
    if run.settings == "mistake":
        raise UserError("the checkpoint is of another model")
    if run.settings == "crash":
        raise RuntimeError("loss is nan")
    if run.settings == "diverge":
        raise RunError("the huber term of the loss is not a number")
    if run.settings == "rights":
        raise PermissionError(13, "Permission denied", "elsewhere")
    if run.settings == "interrupt":
        raise KeyboardInterrupt
    return {"psnr": 30.0}


calls: list[Any] = []
chosen: list[str | None] = []  # the checkpoints that runs went on from


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make toy presets and a toy trainer; the working directory is empty."""
    conf, work = tmp_path / "conf", tmp_path / "work"
    work.mkdir()
    nodes: dict[str, Any] = {
        "runtime": {"_target_": "Device"},
        "scene": {"_target_": "load_scene", "name": "cube", "root": None, "fault": None},
        "background": {"_target_": "background", "train": "white"},
        "model": {"_target_": "Part", "name": "net"},
        "sampler": {"_target_": "Part", "name": "grid"},
        "optimizer": {"_target_": "Part"},
        "scheduler": {"_target_": "Device"},
        "trainer": {"_target_": "settings", "ending": "well"},
        "logger": {"_target_": "Device"},
    }
    for node in nodes.values():
        node["_target_"] = f"{__name__}.{node['_target_']}"
    shipped = OmegaConf.load(Path(__file__).parents[1] / "conf" / "config.yaml")
    quiet = [f"override hydra/{kind}: none" for kind in ("job_logging", "hydra_logging")]
    values = {
        "defaults": ["_self_", *({k: v} for k, v in (line.split(": ") for line in quiet))],
        "seed": 1,
        "data_root": None,
        "run_dir": None,
        "trusted": [__name__],
        "hydra": OmegaConf.to_container(shipped)["hydra"],  # type: ignore[index]
        **nodes,
    }
    conf.mkdir()
    OmegaConf.save(OmegaConf.create(values), conf / "config.yaml")
    trainer = ModuleType("nerftrain.trainer")
    trainer.Run, trainer.train = _run_type(), train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nerftrain.trainer", trainer)
    monkeypatch.chdir(work)
    calls.clear()
    return ["--config-path", str(conf)]


def _run_type() -> type:
    import dataclasses

    fields = "scene model sampler refinement optimizer scheduler background settings runtime logger"
    names = [*fields.split(), "seed", "config", "run_dir"]
    return dataclasses.make_dataclass("Run", [(name, object) for name in names])


def left_behind() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def the_run() -> Path:
    (folder,) = Path("outputs/cube/net-grid").iterdir()
    return folder


def test_a_run_writes_its_folder_and_nothing_else(toy: list[str]):
    assert main(toy) == 0
    folder = the_run()
    assert calls[0][0].run_dir == folder
    assert {Path(name).parent for name in left_behind()} == {folder}
    assert OmegaConf.load(folder / "config.yaml").trainer.ending == "well"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "trainer.endign=x",
            "nerftrain: trainer.endign: no such key; did you mean trainer.ending?",
        ),
        ("trainer.ending=3", "nerftrain: trainer.ending=3: must be a text"),
        ("scene.fault=here", "nerftrain: scene.fault=here: no data there"),
        ("trainer.ending=mistake", "nerftrain: the checkpoint is of another model"),
        ("run_dir=''", "nerftrain: run_dir='': names no folder; give one"),
        ("+trainer.more=3", "nerftrain: trainer.more: no such key; there is ending"),
        ("~model", "nerftrain: model is not set"),
        ("trainer.ending=well,crash", "are a sweep: add -m"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    toy: list[str], capfd: pytest.CaptureFixture[str], override: str, line: str
):
    assert main([*toy, override]) == 2
    out, err = capfd.readouterr()
    assert line in err
    assert err.count("\n") == 1
    assert out == ""
    assert list(Path().iterdir()) == []


def test_a_crash_is_status_1_with_its_traceback(toy: list[str], capfd: pytest.CaptureFixture[str]):
    assert main([*toy, "trainer.ending=crash"]) == 1
    err = capfd.readouterr().err
    assert "Traceback" in err
    assert err.endswith("nerftrain: failed: RuntimeError: loss is nan\n")
    assert (the_run() / "config.yaml").exists()


def test_a_run_that_cannot_go_on_is_status_1_and_one_line(
    toy: list[str], capfd: pytest.CaptureFixture[str]
):
    assert main([*toy, "trainer.ending=diverge"]) == 1
    assert capfd.readouterr().err == "nerftrain: the huber term of the loss is not a number\n"


def test_an_interruption_is_status_130(toy: list[str], capfd: pytest.CaptureFixture[str]):
    assert main([*toy, "trainer.ending=interrupt"]) == 130
    assert "Traceback" not in capfd.readouterr().err


def test_a_failed_job_does_not_stop_a_sweep(toy: list[str], capfd: pytest.CaptureFixture[str]):
    assert main([*toy, "-m", "trainer.ending=crash,well", "seed=1,2"]) == 1
    assert [run.settings for run, _ in calls] == ["crash", "crash", "well", "well"]
    assert {run.run_dir.name for run, _ in calls} == {"0", "1", "2", "3"}
    assert "2 of 4 jobs of the sweep failed" in capfd.readouterr().err


def test_a_sweep_of_mistakes_is_status_2_and_leaves_its_table(toy: list[str]):
    assert main([*toy, "-m", "trainer.ending=mistake", "seed=1,2", "hydra.sweep.dir=all"]) == 2
    records = [f"all/jobs/{number}.json" for number in (0, 1)]
    assert left_behind() == ["all/SWEEP.md", *records, "all/multirun.yaml", "all/sweep.csv"]
    table = Path("all/sweep.csv").read_text()
    assert table.count("failed,the checkpoint is of another model,\n") == 2


def test_a_mistake_in_one_job_of_a_sweep_is_status_1(toy: list[str]):
    assert main([*toy, "-m", "trainer.ending=mistake,well"]) == 1


def test_resuming_a_sweep_is_nothing_for_one_run(toy: list[str], capfd: pytest.CaptureFixture[str]):
    assert main([*toy, "+sweep.resume=true"]) == 2
    assert "has no effect on a single run: add -m" in capfd.readouterr().err
    assert list(Path().iterdir()) == []


def test_an_interruption_ends_a_sweep(toy: list[str]):
    assert main([*toy, "-m", "trainer.ending=well,interrupt,well", "seed=1"]) == 130
    assert [run.settings for run, _ in calls] == ["well", "interrupt"]


@pytest.mark.parametrize("bad", ["trainer.ending=well,3", "seed=1,x", "run_dir=here"])
def test_a_mistake_anywhere_in_a_sweep_starts_no_job(
    toy: list[str], bad: str, capfd: pytest.CaptureFixture[str]
):
    assert main([*toy, "-m", bad, "scene.name=a,b"]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert calls == []
    assert list(Path().iterdir()) == []


def test_a_sweep_whose_folder_cannot_be_written_is_one_line(
    toy: list[str], capfd: pytest.CaptureFixture[str]
):
    Path("file").write_text("")
    assert main([*toy, "-m", "seed=1,2", "hydra.sweep.dir=file/sweep"]) == 2
    err = capfd.readouterr().err
    assert "the sweep's folder cannot be written (Not a directory: " in err
    assert err.endswith("choose another with hydra.sweep.dir=PATH\n")
    assert err.count("\n") == 1
    assert calls == []


def test_hydras_own_folder_of_a_run_is_no_place_for_it(
    toy: list[str], capfd: pytest.CaptureFixture[str]
):
    assert main([*toy, "hydra.run.dir=runs/1"]) == 2
    assert "hydra.run.dir=runs/1: has no effect" in (err := capfd.readouterr().err)
    assert err.endswith("give run_dir=PATH\n")
    assert list(Path().iterdir()) == []
    assert calls == []


def test_hydras_own_folder_in_a_preset_is_blamed_by_its_name(
    toy: list[str], capfd: pytest.CaptureFixture[str]
):
    Path("file").write_text("")
    config = Path(toy[1]) / "config.yaml"
    OmegaConf.save(
        OmegaConf.merge(OmegaConf.load(config), {"hydra": {"run": {"dir": "file/run"}}}), config
    )
    assert main(toy) == 2
    err = capfd.readouterr().err
    assert err.startswith("nerftrain: hydra.run.dir cannot be written (Not a directory: ")
    assert err.endswith("run_dir=PATH is where a run goes\n")
    assert err.count("\n") == 1
    assert calls == []


def test_overrides_may_stand_on_both_sides_of_a_flag(toy: list[str]):
    assert main(["seed=1,2", "-m", *toy, "trainer.ending=well"]) == 0
    assert [run.seed for run, _ in calls] == [1, 2]


def test_resume_goes_on_in_the_same_folder_with_its_overrides(toy: list[str]):
    main(toy)
    folder = the_run()
    assert main(["resume", str(folder), "--trust", "trainer.ending=soon"]) == 0
    run, resume = calls[-1]
    assert (run.run_dir, run.settings, resume) == (folder, "soon", True)
    assert OmegaConf.load(folder / "config.yaml").trainer.ending == "soon"


def test_resume_takes_the_checkpoint_that_it_is_given(toy: list[str]):
    main(toy)
    assert main(["resume", str(the_run()), "--trust", "--checkpoint", "best"]) == 0
    assert main(["resume", str(the_run()), "--trust"]) == 0
    assert chosen[-2:] == ["best", None]


@pytest.mark.parametrize("override", ["seed=5", "scene.name=sphere", "scene.root=other"])
def test_a_run_is_not_gone_on_with_on_other_data_or_with_another_seed(
    toy: list[str], capfd: pytest.CaptureFixture[str], override: str
):
    for name in ("data", "other"):
        Path(name).mkdir()
    main([*toy, "scene.root=data"])
    before = {path: path.read_bytes() for path in the_run().rglob("*") if path.is_file()}
    capfd.readouterr()
    assert main(["resume", str(the_run()), "--trust", override]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"nerftrain: {override.partition('=')[0]}=")
    assert "leave it out, or start another run" in err
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in the_run().rglob("*") if path.is_file()} == before
    assert len(calls) == 1


def test_a_run_in_a_folder_of_others_is_gone_on_with_as_a_copy(
    toy: list[str], capfd: pytest.CaptureFixture[str]
):
    main(toy)
    (the_run() / ".config.yaml").mkdir()  # where it would be written first
    capfd.readouterr()
    assert main(["resume", str(the_run()), "--trust"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("nerftrain: the run's folder cannot be written (Is a directory: ")
    assert err.endswith(": copy it to where you may, and resume the copy\n")


def test_a_run_whose_scene_has_moved_is_gone_on_with(toy: list[str]):
    Path("data").mkdir()
    main([*toy, "scene.root=data"])
    Path("data").rename("moved")
    assert main(["resume", str(the_run()), "--trust", "scene.root=moved", "seed=1"]) == 0
    recorded = OmegaConf.load(the_run() / "config.yaml")
    assert recorded.scene.root == str(Path("moved").absolute())


def test_a_refused_resume_keeps_the_runs_config(toy: list[str]):
    main(toy)
    before = (the_run() / "config.yaml").read_bytes()
    assert main(["resume", str(the_run()), "--trust", "trainer.ending=mistake"]) == 2
    assert (the_run() / "config.yaml").read_bytes() == before


@pytest.fixture
def evaluation(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    seen: list[tuple[Any, ...]] = []
    module = ModuleType("nerftrain.evaluation")
    for name in ("evaluate_run", "render_run"):
        setattr(module, name, lambda run, *args, **more: seen.append((*args, *more.values())))
    monkeypatch.setitem(sys.modules, "nerftrain.evaluation", module)
    return seen


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["eval"], ("test", "last", None, None)),
        (["eval", "--split", "val", "--checkpoint=best", "--views=3"], ("val", "best", 3, None)),
        (["eval", "--out", "there"], ("test", "last", None, Path("there"))),
        (["render"], ("test", "orbit", None, "last", None, False, False, False, None)),
        (
            ["render", "--split=val"],
            ("val", "views", None, "last", None, False, False, False, None),
        ),
        (
            ["render", "--path=spiral", "--frames=8"],
            ("test", "spiral", 8, "last", None, False, False, False, None),
        ),
        (
            ["render", "--path", "still"],
            ("test", "still", None, "last", None, False, False, False, None),
        ),
        (
            ["render", "--time", "0.25"],
            ("test", "orbit", None, "last", 0.25, False, False, False, None),
        ),
        (["render", "--depth"], ("test", "orbit", None, "last", None, True, False, False, None)),
        (
            ["render", "--out=there"],
            ("test", "orbit", None, "last", None, False, False, False, Path("there")),
        ),
        (
            ["render", "--transparent"],
            ("test", "orbit", None, "last", None, False, False, True, None),
        ),
        (["render", "--panorama"], ("test", "orbit", None, "last", None, False, True, False, None)),
    ],
)
def test_verbs_hand_over_their_options(
    toy: list[str],
    evaluation: list[tuple[Any, ...]],
    arguments: list[str],
    expected: tuple[Any, ...],
):
    main(toy)
    verb, *options = arguments
    assert main([verb, *options, str(the_run()), "--trust", "scene.name=ball"]) == 0
    assert evaluation == [expected]


@pytest.mark.parametrize("override", ["seed=3", "trainer.ending=soon", "data_root=x", "run_dir=x"])
@pytest.mark.parametrize("verb", ["eval", "render", "export", "view"])
def test_overrides_that_only_training_would_notice_are_refused(
    toy: list[str], capfd: pytest.CaptureFixture[str], verb: str, override: str
):
    main(toy)
    capfd.readouterr()
    assert main([verb, str(the_run()), "--trust", override]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"nerftrain: {override}: has no effect on what has been trained; leave")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["evla"], "evla: no such command; did you mean eval?"),
        (["lego"], "lego: did you mean nerftrain scene=lego?"),
        (["eval"], "which run?"),
        (["eval", "absent"], "absent is no run"),
        (["view", "absent", "--pixels", "100000"], "--pixels 100000: give 8192 at most"),
        (["eval", "absent", "--views", "0"], "0: must be at least 1"),
        (["render", "absent", "--split", "val", "--frames", "3"], "--frames has no effect"),
        (["render", "absent", "--time", "noon"], "invalid float value: 'noon'"),
        (["--steps", "3"], "keys have no dashes"),
        (["--config-dir", "absent"], "there is no such folder"),
        (["--cfg", "job", "trainer.stepz=3"], "did you mean trainer.steps?"),
        (["-sc", "install=dos"], "No completion plugin for 'dos' found"),
        (["--experimental-rerun", "absent"], "File absent does not exist"),
    ],
)
def test_a_wrong_command_is_one_line(
    capfd: pytest.CaptureFixture[str], arguments: list[str], line: str
):
    assert main(arguments) == 2
    err = capfd.readouterr().err
    assert line in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "check", "{}"],
        ["data", "pose", "{}"],
        ["data", "phone", "{}"],
        ["eval", "{}"],
        ["scene=blender", "scene.root={}"],
        ["scene=colmap", "scene.root={}"],
        ["scene=transforms", "scene.root={}"],
        ["--config-dir", "{}"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_looked_at_is_not_called_missing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str]
):
    if "pose" in arguments:
        pytest.importorskip("pycolmap", reason="COLMAP models: pip install pycolmap")
    name = str(tmp_path / ("x" * 300))  # longer than file systems take; without rights it is alike
    assert main([argument.format(name) for argument in arguments]) == 2
    err = capfd.readouterr().err
    assert "cannot be read (File name too long): check its name and its rights" in err
    assert err.count("\n") == 1


def test_what_rights_forbid_is_one_line(toy: list[str], capfd: pytest.CaptureFixture[str]):
    assert main([*toy, "trainer.ending=rights"]) == 2
    err = capfd.readouterr().err
    assert err == "nerftrain: elsewhere: Permission denied: check its rights\n"


def test_names_without_letters_on_the_screen_are_printed_all_the_same(tmp_path: Path):
    scene = tmp_path / "sc\udcff\N{SNOWMAN}"
    scene.mkdir()
    render_folder(scene, 8, 3, 1)
    command = [sys.executable, "-m", "nerftrain", "data", "check", os.fsencode(scene)]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1:strict"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert b"sc\\udcff\\u2603" in result.stdout


@pytest.mark.parametrize("word", ["hook", "dyn/hook"])
def test_a_bare_preset_in_a_folder_is_recognised(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    (tmp_path / "scene/dyn").mkdir(parents=True)
    (tmp_path / "scene/dyn/hook.yaml").write_text("# A fighter\n")
    monkeypatch.setattr("nerftrain.usage.data_dir", lambda name: tmp_path)
    assert main([word]) == 2
    assert f"{word}: did you mean nerftrain scene=dyn/hook?" in capfd.readouterr().err


def test_cfg_prints_the_config_alone(capfd: pytest.CaptureFixture[str]):
    assert main(["--cfg", "job", "seed=4"]) == 0
    out, err = capfd.readouterr()
    assert OmegaConf.create(out).seed == 4
    assert err == ""


def test_hydras_own_help_is_no_string_when_its_parser_is_made(
    toy: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    container = argparse._ActionsContainer

    def check(_self: object, action: argparse.Action) -> None:
        if action.help and not isinstance(action.help, str):
            raise ValueError("badly formed help string")

    add = argparse.ArgumentParser.add_argument

    def add_argument(self: Any, *names: str, **how: Any) -> argparse.Action:
        action = add(self, *names, **how)
        self._check_help(action)  # as Python 3.14 does
        return action

    monkeypatch.setattr(container, "_check_help", check, raising=False)
    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_argument)
    assert main(toy) == 0
    assert len(calls) == 1
    assert main(["--hydra-help"]) == 0
    assert "shell completion" in capfd.readouterr().out
    assert container._check_help is check


def test_help_lists_every_preset_with_its_description(capfd: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    out = capfd.readouterr().out
    conf = Path(__file__).parents[1] / "conf"
    for file in conf.glob("*/**/*.yaml"):
        text = file.read_text(encoding="utf-8").removeprefix("# @package _global_\n")
        description = text.partition("\n")[0].lstrip("# ")
        group, _, name = file.relative_to(conf).with_suffix("").as_posix().partition("/")
        section = out.partition(f"\n{group}=\n")[2].partition("\n\n")[0]
        # Presets of a folder that differ in nothing but their name share two lines.
        folder, _, stem = name.rpartition("/")
        kind = description.partition("(")[2].removesuffix(")")
        row = rf"^  {folder}/{{(\w+,)*{stem}(,\w+)*}}\n +{re.escape(kind)}$"
        assert any(name in line and description in line for line in section.splitlines()) or (
            folder and kind and re.search(row, section, re.MULTILINE)
        ), file


# --- In a process of its own


def process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "nerftrain", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_takes_less_than_a_second(tmp_path: Path):
    start = time.perf_counter()
    done = process("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert time.perf_counter() - start < 1.0


def test_help_and_completion_load_no_torch(tmp_path: Path):
    script = (
        "import sys; from nerftrain.cli import main; import nerftrain, nerftrain.config\n"
        "assert main(['--help']) == 0\n"
        "assert main(['-sc', 'query=bash']) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "COMP_LINE": "nerftrain scene=leg",
        "COMP_POINT": "19",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("scene=lego\n")


def test_a_typo_is_status_2_and_leaves_the_folder_empty(tmp_path: Path):
    done = process("scene=leggo", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "nerftrain: scene=leggo: no such scene; did you mean scene=lego?\n"
    assert list(tmp_path.iterdir()) == []
