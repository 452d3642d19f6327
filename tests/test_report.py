from __future__ import annotations

import errno
import io
import json
import logging
import math
import mmap
import os
import platform
import sys
import time
import warnings

import numpy as np
import pytest
import torch

from nerftrain import report
from nerftrain.errors import UserError
from nerftrain.report import Curve, Progress, TensorBoard

FINAL = {
    "psnr": 31.234,
    "ssim": 0.9567,
    "lpips": None,
    "num_views": 25,
    "steps": 4000,
    "train_seconds": 60.04,
    "peak_memory_bytes": 3 * 2**29,
    "split": "test",
    "resolution": "400x400",
    "background": "white",
    "seed": 1,
}
CONFIG = {
    "scene": {"name": "lego"},
    "model": {"name": "ngp", "encoding": {"num_levels": 8}, "extra_channels": {}},
    "sampler": {"name": "occgrid"},
    "run_dir": None,
}


@pytest.fixture(autouse=True)
def _restored_logging():
    loggers = [logging.getLogger(name) for name in ("nerftrain", "py.warnings")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    logging.captureWarnings(False)
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def events(run_dir, folder="tb"):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run_dir / folder))
    return accumulator.Reload()


def points_of(found, tag):
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_scalars_lie_against_steps_and_against_seconds(tmp_path):
    board = TensorBoard(True)
    board.open(tmp_path)
    for step, seconds in ((10, 0.5), (20, 0.9), (30, 2.2)):
        board.scalars({"loss": step / 10, "psnr": None}, step, seconds)
    board.image("preview", np.zeros((4, 6, 3), np.uint8), 30)
    board.hparams(CONFIG, {"psnr": 30.0, "lpips": None})
    board.close()
    found = events(tmp_path)
    assert points_of(found, "loss") == [(10, 1.0), (20, 2.0), (30, 3.0)]
    found_by_second = events(tmp_path, "tb/by_second")
    assert points_of(found_by_second, "by_second/loss") == [(0, 1.0), (2, 3.0)]
    assert "psnr" not in found.Tags()["scalars"]
    assert found.Tags()["images"] == ["preview"]
    assert found.Scalars("final/psnr")[0].value == 30.0


@pytest.mark.parametrize("steps_a_second", [0.2, 10])
def test_going_on_hides_what_was_written_later(tmp_path, steps_a_second):
    for resumed, steps in ((None, (10, 20, 30, 40)), (20, (30, 50))):
        board = TensorBoard(True)
        board.open(tmp_path, resumed, (resumed or 0) / steps_a_second)
        for step in steps:
            board.scalars({"loss": float(resumed or 0)}, step, step / steps_a_second)
        board.close()
        time.sleep(1.1)  # files are read in the order of the seconds in their names
    assert points_of(events(tmp_path), "loss") == [(10, 0), (20, 0), (30, 20), (50, 20)]
    found = points_of(events(tmp_path, "tb/by_second"), "by_second/loss")
    expected = [(10, 0), (20, 0), (30, 20), (50, 20)]
    assert found == [(int(step / steps_a_second), value) for step, value in expected]


def test_a_disabled_board_writes_nothing(tmp_path):
    board = TensorBoard(False)
    board.open(tmp_path)
    board.scalars({"loss": 1.0}, 1, 1.0)
    board.image("preview", np.zeros((4, 6, 3)), 1)
    board.hparams(CONFIG, FINAL)
    board.close()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tensorboard_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    board = TensorBoard(True)
    board.open(tmp_path)
    board.scalars({"loss": 1.0}, 1, 1.0)
    assert "pip install tensorboard" in caplog.text


def test_nested_settings_become_dotted_hyperparameters():
    flat = report._flat(CONFIG)
    assert flat["model.encoding.num_levels"] == 8
    assert flat["run_dir"] == "None"


def test_rows_are_on_disk_as_soon_as_written(tmp_path):
    curve = Curve(tmp_path)
    curve.write(50, 1.25, loss=0.5, psnr=math.nan)
    assert report.read_curve(tmp_path) == [{"step": 50, "seconds": 1.25, "loss": 0.5, "psnr": None}]


def test_resume_drops_later_rows_and_a_torn_one(tmp_path):
    curve = Curve(tmp_path)
    for step in (50, 100, 150):
        curve.write(step, step / 10)
    curve.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2')
    resumed = Curve(tmp_path, resumed_step=100)
    resumed.write(120, 12.0)
    assert [row["step"] for row in report.read_curve(tmp_path)] == [50, 100, 120]


def test_a_full_disk_costs_rows_and_is_said_once(tmp_path, caplog):
    curve = Curve(tmp_path)
    curve._file.close()
    curve._file = open("/dev/full", "w")  # noqa: SIM115
    for step in (1, 2):
        curve.write(step, 0.1, loss=0.5)
    curve.close()
    assert [m for m in caplog.messages if "metrics.jsonl is not complete: No space left" in m] != []
    assert len(caplog.messages) == 1


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "env.json").mkdir()
    with pytest.raises(UserError, match=r"env.json cannot be written .*: make room there"):
        report.write_env(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["env.json"]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_who_no_longer_reads_does_not_end_a_training(monkeypatch, caplog, stream):
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, stream, os.fdopen(write, "w"))
    caplog.set_level(logging.INFO)
    for _ in range(2):
        report.show("step 1", stream)
    assert getattr(sys, stream).name == os.devnull
    report.say("step 2")
    assert "step 2" in caplog.messages


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_terminal_that_is_gone_does_not_end_a_training(monkeypatch, stream):
    class Gone(io.StringIO):
        def write(self, _):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, stream, Gone())
    report.show("step 1", stream)
    report.show("step 2", stream)
    assert getattr(sys, stream).name == os.devnull


def test_plain_progress_is_spaced_and_ends_with_the_last_state(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: clock[0])
    progress = Progress(1000, None, terminal=False)
    for step, now in ((100, 0.0), (200, 5.0), (300, 11.0), (400, 12.0)):
        clock[0] = now
        progress.update(step, now, {"loss": 0.25, "psnr": 21.5, "rays_per_second": 12345.0})
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["100", "300", "400"]
    assert "loss 0.25" in lines[1]
    assert "psnr 21.50" in lines[1]
    assert "12.3k rays/s" in lines[1]
    assert "eta 26 s" in lines[1]


def test_progress_follows_whichever_of_steps_and_seconds_ends_the_run(capsys):
    progress = Progress(1000, 10.0, terminal=False)
    progress.update(100, 5.0, {})
    assert capsys.readouterr().out.startswith(" 50%")


def test_on_a_terminal_there_is_one_live_line(capsys):
    progress = Progress(1000, None, terminal=True)
    progress.update(500, 5.0, {"psnr": 30.0})
    progress.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert " 50% |" in captured.err
    assert "psnr 30.00" in captured.err


def test_what_is_said_and_warned_is_in_the_log(tmp_path, capsys):
    report.setup_logging(tmp_path)
    report.say("hello")
    logging.getLogger("nerftrain.trainer").warning("beware")
    logging.getLogger("nerftrain.trainer").info("quiet")
    warnings.warn("old habit", stacklevel=1)
    report.setup_logging(None)
    captured = capsys.readouterr()
    assert captured.out == "hello\n"
    assert captured.err.startswith("WARNING: beware\n")
    text = (tmp_path / "train.log").read_text()
    assert all(word in text for word in ("hello", "beware", "quiet", "old habit"))


def test_warnings_are_in_the_log_whoever_showed_them_since(tmp_path):
    with warnings.catch_warnings(record=True):
        report.setup_logging(None)
    with warnings.catch_warnings(record=True) as elsewhere:
        report.setup_logging(tmp_path)
        warnings.warn("old habit", stacklevel=1)
        report.setup_logging(None)
    assert not elsewhere
    assert "old habit" in (tmp_path / "train.log").read_text()


def test_a_second_setup_replaces_the_first(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        report.setup_logging(tmp_path / name)
    logging.getLogger("nerftrain").warning("once")
    report.setup_logging(None)
    assert capsys.readouterr().err == "WARNING: once\n"
    assert (tmp_path / "a" / "train.log").read_text() == ""
    assert "once" in (tmp_path / "b" / "train.log").read_text()


def test_metrics_hold_every_figure_and_valid_json(tmp_path):
    report.write_metrics(tmp_path, {"psnr": 30.0, "ssim": math.nan, "steps": 5})
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert tuple(found) == (*report.FINAL_KEYS, *report.PROTOCOL_KEYS)
    assert (found["psnr"], found["ssim"], found["lpips"]) == (30.0, None, None)


def test_peak_memory_counts_bytes():
    block = torch.ones(1 << 24)
    peak = report.peak_memory_bytes()
    assert block.nbytes < peak < 2**40


def test_the_table_lines_up_and_shows_what_is_missing():
    lines = report.final_table(FINAL).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert all(
        text in lines[2] for text in ("31.23", "0.9567", "| -  ", "25 views", "60.0 s", "1.50 GiB")
    )
    assert report.final_table({}).count("-") > 5


def test_the_end_names_the_commands_that_come_next(tmp_path, capsys):
    report.print_final(tmp_path, FINAL)
    assert "tensorboard" not in capsys.readouterr().out  # nothing was written for it
    (tmp_path / "tb").mkdir()
    report.print_final(tmp_path, FINAL)
    text = capsys.readouterr().out
    for verb in ("nerftrain eval", "nerftrain render", "nerftrain resume", "tensorboard --logdir"):
        assert f"{verb} {tmp_path}" in text


def test_the_report_tells_figures_protocol_curve_views_and_environment(tmp_path):
    curve = Curve(tmp_path)
    for step in range(50, 2050, 50):
        curve.write(step, step / 100, loss=0.1, psnr=25.0)
        if step % 500 == 0:
            curve.write(step, step / 100, eval_psnr=26.5 + step / 1000)
    report.write_env(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "comparison.png").touch()
    (tmp_path / "video.mp4").touch()
    views = [{"name": "r_0", "psnr": 31.0, "ssim": 0.95, "lpips": None}]
    report.write_report(tmp_path, FINAL, views, CONFIG)
    text = (tmp_path / "REPORT.md").read_text()
    expected = (
        "nerftrain scene=lego model=ngp sampler=occgrid seed=1",
        "25 views of the test split at 400x400 on a white background",
        "28.5",
        "| r_0",
        "](images/comparison.png)",
        "(video.mp4)",
        torch.__version__,
        "nerftrain eval",
    )
    assert [part for part in expected if part not in text] == []


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    rows = [{"step": i, "seconds": i / 2, "loss": 1.0} for i in range(1000)]
    lines = report._curve_table(rows).splitlines()
    assert len(lines) == 2 + 12
    assert lines[2].startswith("| 0 ")
    assert lines[-1].startswith("| 999 ")
    assert report._curve_table([]) == "No row was logged."


def test_the_report_of_a_bare_folder_is_written(tmp_path):
    report.write_report(tmp_path, {}, [], {}, command="nerftrain scene=demo")
    assert "nerftrain scene=demo" in (tmp_path / "REPORT.md").read_text()


def test_a_report_names_folders_whose_names_are_not_utf_8(tmp_path):
    command = "nerftrain run_dir=" + os.fsdecode(b"b\xffyte")
    report.write_report(tmp_path, {}, [], {}, command=command)
    assert b"run_dir=b\xffyte" in (tmp_path / "REPORT.md").read_bytes()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux resets its peak")
def test_a_reset_forgets_the_memory_of_what_was_before():
    # A mapping of its own: what is freed otherwise may stay with the process for reuse.
    with mmap.mmap(-1, 200 << 20) as block:
        block.write(b"x" * len(block))
        before = report.peak_memory_bytes()
    report.reset_peak_memory()
    after = report.peak_memory_bytes()
    assert before is not None
    assert after is not None
    assert after < before - (100 << 20)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to return it")
def test_a_reset_forgets_what_was_freed_but_kept_by_the_c_library():
    report.reset_peak_memory()  # or the peak of an earlier test would hide what stays
    # Too small for mappings of their own, and below one that stays: glibc returns none by itself.
    blocks = [torch.ones(1 << 14) for _ in range(200 << 4)]
    before = report.peak_memory_bytes()
    last = blocks.pop()
    blocks.clear()
    report.reset_peak_memory()
    after = report.peak_memory_bytes()
    assert len(last) == 1 << 14
    assert before is not None
    assert after is not None
    assert after < before - (100 << 20)


def test_the_world_is_written_whole_with_what_it_means(tmp_path):
    world = torch.tensor([[2.0, 0, 0, 1], [0, 2, 0, 0.1], [0, 0, 2, -3], [0, 0, 0, 1]]).double()
    report.write_world(tmp_path, world)
    content = json.loads((tmp_path / "world.json").read_text())
    assert torch.equal(torch.tensor(content["dataset_to_scene"]).double(), world)
    assert "x_run = M x_data" in content["what"]
    assert [path.name for path in tmp_path.iterdir()] == ["world.json"]
