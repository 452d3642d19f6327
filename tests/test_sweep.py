"""Sweeps end with one table, whatever becomes of their jobs, and train nothing twice."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nerftrain import sweep, trainer
from nerftrain.cli import main
from nerftrain.errors import UserError

QUICK = """\
steps: 5
max_seconds: null
sample_budget: 1024
orbit_frames: 0
"""


@pytest.fixture
def command(tiny_scene_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A sweep's command line with presets in folders: two scenes and one without its data."""
    conf, work = tmp_path / "presets", tmp_path / "work"
    for name, root in (("one", tiny_scene_root), ("two", tiny_scene_root), ("gone", "/absent")):
        text = f"name: {name}\nroot: {root}\n"
        _preset(conf / f"scene/tiny/{name}.yaml", "/scene/blender@_here_", text)
    _preset(conf / "trainer/quick.yaml", "default", QUICK)
    small = "encoding:\n  log2_table_size: 8\n  num_levels: 2\n"
    _preset(conf / "model/small.yaml", "ngp", small)
    work.mkdir()
    monkeypatch.chdir(work)
    presets = ["model=small", "sampler=uniform", "trainer=quick", "logger=none"]
    return ["-m", "--config-dir", str(conf), *presets, "runtime.threads=1", "sampler.num_samples=8"]


def _preset(file: Path, base: str, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"# A preset of a test\ndefaults: [{base}]\n{text}", encoding="utf-8")


def rows(folder: str) -> list[dict[str, str]]:
    with Path(folder, "sweep.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The folders that the training loop has seen and the steps at which it began."""
    seen: list[tuple[str, int]] = []
    loop = trainer.loop

    def watched(run: Any, state: Any, journal: Any) -> None:
        seen.append((run.run_dir.name, state.step))
        loop(run, state, journal)

    monkeypatch.setattr(trainer, "loop", watched)
    return seen


def interrupt_at(step: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    after_step = trainer.Journal.after_step

    def watched(self: trainer.Journal, *args: Any) -> None:
        after_step(self, *args)
        if self.run.seed == seed and self.state.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer.Journal, "after_step", watched)


def test_a_sweep_with_a_failed_job_ends_with_a_table_of_all(
    command: list[str], capfd: pytest.CaptureFixture[str]
):
    # The default scene has no such key as near.
    scenes = ["scene=tiny/one,tiny/gone,tiny/two", "scene.near=1.5"]
    assert main([*command, *scenes, "hydra.sweep.dir=all"]) == 1
    out, err = capfd.readouterr()
    one, gone, two, mean = rows("all")
    assert [row["scene"] for row in (one, gone, two)] == ["tiny/one", "tiny/gone", "tiny/two"]
    assert [row["job"] for row in (one, gone, two, mean)] == ["0", "1", "2", "mean"]
    for key in sweep.FIGURES:
        figures = [
            json.loads(Path("all", row["run_dir"], "metrics.json").read_text())[key]
            for row in (one, two)
        ]
        assert [float(row[key]) for row in (one, two)] == pytest.approx(figures)
        assert float(mean[key]) == pytest.approx(sum(figures) / 2)
        assert gone[key] == ""
    assert mean["result"] == "2 of 3 jobs"
    assert gone["result"] == "failed"
    assert "/absent" in gone["reason"]
    assert f"Failed:\n\n* tiny/gone: {gone['reason']}" in out
    assert not Path("all/1").exists()
    assert OmegaConf.load("all/0/config.yaml").scene.near == 1.5
    table = Path("all/SWEEP.md").read_text(encoding="utf-8")
    assert f"| {'tiny/two':9} | {float(two['psnr']):.2f}" in table
    assert table.split("\n\n")[2] in out
    assert "sweep.resume=true" in out
    assert "1 of 3 jobs of the sweep failed" in err


def test_a_mistake_in_every_job_is_status_2(command: list[str]):
    assert main([*command, "scene=tiny/gone", "seed=1,2", "hydra.sweep.dir=all"]) == 2
    assert [row["seed"] for row in rows("all")] == ["1", "2", ""]


def test_an_interrupted_sweep_has_its_table_and_is_taken_up(
    command: list[str], trained: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
):
    command += ["scene=tiny/one", "seed=1,2,3", "hydra.sweep.dir=all"]
    with monkeypatch.context() as patch:
        interrupt_at(3, seed=2, monkeypatch=patch)
        assert main(command) == 130
    first = Path("all/0/metrics.json").read_bytes()
    assert [row["result"] for row in rows("all")] == [
        *("done", "interrupted", "not begun", "1 of 3 jobs")
    ]
    assert [row["seed"] for row in rows("all")] == ["1", "2", "3", ""]
    assert main([*command, "sweep.resume=true"]) == 0
    assert trained == [("0", 0), ("1", 0), ("1", 3), ("2", 0)]
    ends = [row["result"] for row in rows("all")]
    assert ends == ["done before", "done", "done", "3 of 3 jobs"]
    assert Path("all/0/metrics.json").read_bytes() == first
    assert main([*command, "sweep.resume=true"]) == 0
    assert len(trained) == 4
    assert rows("all")[0]["psnr"] == str(json.loads(first)["psnr"])


def test_a_run_that_cannot_be_taken_up_is_kept_and_its_job_fails(
    command: list[str], trained: list[tuple[str, int]]
):
    command += ["scene=tiny/one", "seed=1,2", "hydra.sweep.dir=all"]
    assert main(command) == 0
    checkpoint = Path("all/0/checkpoints/last.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    Path("all/0/metrics.json").unlink()
    assert main([*command, "sweep.resume=true"]) == 1
    damaged, done, _ = rows("all")
    assert damaged["result"] == "failed"
    assert "cut short" in damaged["reason"]
    assert done["result"] == "done before"
    assert checkpoint.is_file()
    assert len(trained) == 2


def test_a_folder_that_holds_a_sweep_is_left_alone(
    command: list[str], trained: list[tuple[str, int]], capfd: pytest.CaptureFixture[str]
):
    command += ["scene=tiny/one", "hydra.sweep.dir=all"]
    assert main([*command, "seed=1"]) == 0
    before = {path: path.read_bytes() for path in Path("all").rglob("*.*") if path.is_file()}
    capfd.readouterr()
    assert main([*command, "seed=2"]) == 2
    assert "holds a sweep: add sweep.resume=true" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    # Another config: its job has the number of the first, but not its folder.
    assert main([*command, "seed=2", "sweep.resume=true"]) == 0
    assert trained == [("0", 0), ("0-2", 0)]


def test_what_a_sweep_elsewhere_has_done_is_found(
    command: list[str], trained: list[tuple[str, int]]
):
    command += ["scene=tiny/one", "hydra.sweep.dir=outputs/sweeps/old"]
    assert main([*command, "seed=1,2"]) == 0
    again = [*command[:-1], "sweep.resume=true", "hydra.sweep.dir=new"]
    # run_dir, the logger and the order do not make another run; the learning rate does.
    assert main([*again, "seed=2,1", "logger=tensorboard"]) == 0
    assert [row["run_dir"] for row in rows("new")] == [
        f"../outputs/sweeps/old/{number}" for number in (1, 0)
    ] + [""]
    assert len(trained) == 2
    assert main([*again, "seed=2", "optimizer.lr=0.007"]) == 0
    assert len(trained) == 3
    assert main([*again, "seed=2", "run_dir=here"]) == 0
    assert trained[-1] == ("here", 0)
    assert main([*again, "seed=2", "run_dir=here"]) == 0
    assert len(trained) == 4


# --- The table


def job(folder: Path, number: int, result: str = sweep.DONE, **values: Any) -> sweep.Job:
    """Record a job whose run has the given figures."""
    run_dir = folder / str(number)
    run_dir.mkdir(parents=True)
    overrides = [f"{key}={value}" for key, value in values.pop("overrides", {}).items()]
    (run_dir / "metrics.json").write_text(json.dumps(values), encoding="utf-8")
    names = {"scene": "cube", "model": "net", "sampler": "grid"}
    made = sweep.Job(number, overrides, folder, names, run_dir, result)
    made.write()
    return made


def test_rows_are_in_job_order_and_survive_a_move(tmp_path: Path):
    for number in (10, 9, 2):
        job(tmp_path / "a", number, psnr=float(number))
    (tmp_path / "a").rename(tmp_path / "b")
    found = sweep.read(tmp_path / "b")
    assert [entry.number for entry in found] == [2, 9, 10]
    assert [entry.figures()["psnr"] for entry in found] == [2.0, 9.0, 10.0]


def test_columns_are_what_differs_or_else_the_choices(tmp_path: Path):
    job(tmp_path, 0, overrides={"seed": 1, "trainer.steps": 5})
    assert sweep.table(sweep.read(tmp_path)).startswith("| scene | model | sampler | PSNR")
    job(tmp_path, 1, overrides={"seed": 2, "trainer.steps": 5})
    assert sweep.table(sweep.read(tmp_path)).startswith("| seed | PSNR")


def test_a_mean_is_of_finished_jobs_that_all_have_the_figure(tmp_path: Path):
    job(tmp_path, 0, psnr=20.0, ssim=0.5)
    job(tmp_path, 1, sweep.DONE_BEFORE, psnr=30.0, ssim=None)
    job(tmp_path, 2, sweep.RUNNING, psnr=90.0, ssim=0.9)
    last = sweep.table(sweep.read(tmp_path)).splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")] == [
        *("mean", "", "", "25.00", "-", "-", "-", "2 of 3 jobs")
    ]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def compare(folder: Path, psnrs: dict[tuple[str, str, int], float | None]) -> list[list[str]]:
    """Record jobs by model, scene and seed; return the rows of the table of means."""
    for number, ((model, scene, seed), psnr) in enumerate(psnrs.items()):
        overrides = {"model": model, "scene": scene, "seed": seed}
        result = sweep.FAILED if psnr is None else sweep.DONE
        job(folder, number, result, psnr=psnr, overrides=overrides)
    _, found, means = sweep.table(sweep.read(folder)).partition("Means over ")
    assert found
    return [cells(line) for line in means.splitlines()[2:] if line.startswith("|")]


def test_means_are_of_what_is_compared_with_the_spread_over_seeds(tmp_path: Path):
    psnrs = {
        ("ngp", "lego", 1): 30.0,
        ("ngp", "lego", 2): 32.0,
        ("ngp", "chair", 1): 20.0,
        ("ngp", "chair", 2): 24.0,
        ("mlp", "lego", 1): 28.0,
        ("mlp", "lego", 2): 28.0,
        ("mlp", "chair", 1): 22.0,
        ("mlp", "chair", 2): None,
    }
    header, _, ngp, mlp = compare(tmp_path, psnrs)
    assert header == ["model", "PSNR", "SSIM", "training", "peak memory", "over"]
    # Means of the seeds: 25 and 28.
    assert ngp == ["ngp", "26.50 +- 2.12", "-", "-", "-", "4 of 4 jobs"]
    assert mlp == ["mlp", "26.00", "-", "-", "-", "3 of 4 jobs"]  # one whole seed has no spread
    text = sweep.table(sweep.read(tmp_path))
    assert "Means over model" not in text
    assert "\n| mean" not in text
    sweep.write_table(tmp_path)
    assert "mean" not in [row["job"] for row in rows(str(tmp_path))]
    assert "Means over scene and seed; +- the standard deviation over seeds:" in text.replace(
        "Means over seed and scene", "Means over scene and seed"
    )


def test_seeds_alone_give_one_mean_with_its_spread(tmp_path: Path):
    for seed in (1, 2, 3):
        job(tmp_path, seed, psnr=29.0 + seed, overrides={"seed": seed})
    text = sweep.table(sweep.read(tmp_path))
    assert "Means over seed; +-" in text
    assert cells(text.splitlines()[-1])[0] == "31.00 +- 1.00"


def test_jobs_that_stand_for_themselves_have_no_second_table(tmp_path: Path):
    for number, model in enumerate(("ngp", "mlp")):
        job(tmp_path / "models", number, psnr=30.0, overrides={"model": model})
        job(tmp_path / "scenes", number, psnr=30.0, overrides={"scene": f"s{number}"})
    for kind in ("models", "scenes"):
        text = sweep.table(sweep.read(tmp_path / kind))
        assert "Means over" not in text
        assert ("| mean" in text) == (kind == "scenes")  # of two models it would say nothing


def test_a_damaged_record_costs_its_row_alone(tmp_path: Path):
    job(tmp_path, 0, psnr=20.0)
    (tmp_path / sweep.RECORDS / "1.json").write_text('{"number": 1', encoding="utf-8")
    sweep.write_table(tmp_path)
    assert [row["job"] for row in rows(str(tmp_path))] == ["0", "mean"]


@pytest.mark.parametrize(
    ("statuses", "status"), [((0, 0), 0), ((2, 2), 2), ((0, 2), 1), ((1, 2), 1)]
)
def test_the_exit_status_tells_of_failures(tmp_path: Path, statuses: tuple[int, ...], status: int):
    jobs = [sweep.Job(n, [], tmp_path, status=value) for n, value in enumerate(statuses)]
    assert sweep.exit_status(jobs) == status


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*hydra\.sweep\.dir=PATH"):
        sweep.Job(0, [], tmp_path / "file").write()
