"""The configuration refuses every mistake in one line with its remedy, and builds what is right."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from nerftrain import config, schema
from nerftrain.composition import (
    Source,
    compose,
    for_hydra,
    is_sweep,
    jobs,
    sweep_dir,
    with_sweep_dir,
)
from nerftrain.errors import UserError
from nerftrain.paths import data_dir

TRUSTED = (*schema.TRUSTED, __name__)


@dataclass(frozen=True)
class Inner:
    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"every={self.every}: must be at least 1")


class Toy:
    def __init__(
        self,
        count: int,
        rate: float,
        on: bool,
        label: str | None,
        kind: Literal["huber", "l2"],
        folder: Path,
        rates: list[float],
        pair: tuple[float, float],
        channels: dict[str, int],
        inner: Inner,
        *,
        scene: Any = None,
    ) -> None:
        self.values = dict(locals())


class OneOfEach:
    def __init__(self, choice: Literal["a", "b"] | None, either: int | str) -> None:
        self.choice, self.either = choice, either


class Needs:
    def __init__(self, width: int, *, aabb: Any) -> None:
        self.width, self.aabb = width, aabb


class Elsewhere:
    def __init__(self) -> None:
        raise UserError("no transforms_train.json in /data: name a folder that has it")


GOOD: dict[str, Any] = {
    "_target_": f"{__name__}.Toy",
    "count": 3,
    "rate": 1,
    "on": True,
    "label": None,
    "kind": "huber",
    "folder": "a/b",
    "rates": [1, 2.5],
    "pair": [0.9, 1],
    "channels": {"semantics": 3},
    "inner": {"_target_": f"{__name__}.Inner", "every": 2},
}


def build(changes: dict[str, Any] | None = None, **runtime: Any) -> Any:
    node = OmegaConf.create({"toy": {**GOOD, **(changes or {})}}).toy
    return config.build(node, trusted=TRUSTED, **runtime)


def mistake(changes: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        build(changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_build_hands_over_plain_python_of_the_annotated_types():
    scene = object()
    values = build(scene=scene).values
    assert values["scene"] is scene
    assert type(values["rate"]) is float
    assert values["folder"] == Path("a/b")
    assert values["rates"] == [1.0, 2.5]
    assert all(type(rate) is float for rate in values["rates"])
    assert values["pair"] == (0.9, 1.0)
    assert type(values["channels"]) is dict
    assert values["inner"] == Inner(2)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("count", True, "toy.count=true: must be a whole number"),
        ("count", "three", "toy.count=three: must be a whole number"),
        ("count", 3.0, "toy.count=3.0: must be a whole number, written toy.count=3"),
        ("count", None, "toy.count=null: must be a whole number"),
        ("rate", False, "toy.rate=false: must be a number"),
        ("rate", float("nan"), "toy.rate=nan: must be a number"),
        ("rate", float("inf"), "toy.rate=inf: must be a finite number"),
        ("rate", -float("inf"), "toy.rate=-inf: must be a finite number"),
        ("rate", 10**400, "must be less than 2^64"),
        ("rates", [1, float("inf")], "toy.rates[1]=inf: must be a finite number"),
        ("pair", [1, float("inf")], "toy.pair[1]=inf: must be a finite number"),
        ("count", float("inf"), "toy.count=inf: must be a whole number"),
        ("count", 2**64, "toy.count=18446744073709551616: must be less than 2^64"),
        ("label", float("inf"), "toy.label=inf: must be a text, in quotes"),
        ("on", 1, "toy.on=1: must be true or false"),
        ("label", [1], "toy.label=[1]: must be a text or null"),
        ("kind", "hubr", "toy.kind=hubr: choose one of huber, l2; did you mean huber?"),
        ("folder", 7, "toy.folder=7: must be a text, in quotes"),
        ("rates", 1.0, "toy.rates=1.0: must be a list: toy.rates=[...]"),
        ("rates", [1, "x"], "toy.rates[1]=x: must be a number"),
        ("pair", [1, 2, 3], "toy.pair=[1, 2, 3]: must have 2 values"),
        ("channels", {"a": "b"}, "toy.channels.a=b: must be a whole number"),
        ("channels", 3, "toy.channels=3: must be a mapping"),
        ("inner", 3, "toy.inner=3: must be a node with _target_: Inner"),
        ("inner", {"_target_": f"{__name__}.Needs", "width": 1}, "toy.inner: Needs wants aabb="),
        ("count", "???", "toy.count is not set: add toy.count=VALUE"),
        ("cuont", 3, "toy.cuont: no such key; did you mean toy.count?"),
        ("zzz", 3, "toy.zzz: no such key; there is count, rate"),
        ("scene", 3, "toy.scene: no such key"),
        ("_target_", "os.system", "toy._target_=os.system: trusted are nerftrain., torch.optim."),
        ("_target_", 3, "toy has no _target_"),
        (
            "_target_",
            f"{__name__}.Toi",
            f"no such class; did you mean toy._target_={__name__}.Toy?",
        ),
        ("_target_", "nerftrain.nothing.X", "there is no module nerftrain.nothing"),
        (
            "_target_",
            "nerftrain.models.RadianceField",
            "toy._target_=nerftrain.models.RadianceField: lacks density, forward; name a class",
        ),
        # What a trusted module has imported from elsewhere is not trusted for that.
        ("_target_", "nerftrain.paths.Path", f"toy._target_={Path.__module__}.Path: trusted"),
    ],
)
def test_build_refuses_with_the_key_and_the_remedy(key: str, value: Any, line: str):
    assert line in mistake({key: value})


@pytest.mark.parametrize("key", ["max_seconds", "intervals.checkpoint_seconds", "huber_delta"])
def test_infinity_is_taken_where_it_says_something(key: str):
    config.check(compose([f"trainer.{key}=inf"]))
    for slip in ("-inf", "nan"):
        with pytest.raises(UserError, match=f"trainer.{key}={slip}: must be a"):
            config.check(compose([f"trainer.{key}={slip}"]))


@pytest.mark.parametrize(
    "key",
    [
        "optimizer.lr",
        "optimizer.weight_decay",
        "sampler.finer_views",
        "sampler.early_stop_eps",
        "sampler.cone_angle",
        "trainer.distortion_weight",
    ],
)
def test_infinity_is_refused_elsewhere(key: str):
    with pytest.raises(UserError) as error:
        config.check(compose([f"{key}=inf"]))
    assert str(error.value) == f"{key}=inf: must be a finite number"


@pytest.mark.parametrize(
    ("choices", "weight", "spread"),
    [
        (["scene=colmap"], 0.0003, 0.01),
        (["scene=colmap", "scene.depths=none"], 0.0, 0.01),
        (["scene=transforms"], 0.0, 0.01),
        (["scene=transforms", "scene.depths=maps"], 0.0007, 0.03),
        (["scene=mip360/garden"], 0.0, 0.01),  # as its published figures are
        (["scene=mip360/garden", "scene.depths=points", "trainer.depth_weight=0.1"], 0.1, 0.01),
        (["scene=lego"], 0.0, 0.01),
    ],
)
def test_depths_that_are_read_are_learnt_from(choices: list[str], weight: float, spread: float):
    trainer = compose(choices).trainer
    assert (trainer.depth_weight, trainer.depth_spread) == (weight, spread)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("trainer.max_seconds=abc", "trainer.max_seconds=abc: must be a number or null"),
        ("trainer.max_seconds=nan", "trainer.max_seconds=nan: must be a number or null"),
        ("trainer.max_seconds=[1]", "trainer.max_seconds=[1]: must be a number or null"),
        ("+model.hints.seconds=x", "model.hints.seconds=x: must be a number or null"),
        ("trainer.hints=null", "trainer.hints=null: must be a mapping, which other keys"),
        ("trainer.hints=3", "trainer.hints=3: must be a mapping, which other keys"),
    ],
)
@pytest.mark.parametrize("scene", ["demo", "lego"])
def test_the_key_that_others_depend_on_is_blamed(override: str, line: str, scene: str):
    with pytest.raises(UserError) as error:
        config.check(compose([f"scene={scene}", override]))
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_unknown_keys_of_nested_nodes_are_named_in_full():
    inner = {"_target_": f"{__name__}.Inner", "evry": 2}
    assert mistake({"inner": inner}) == "toy.inner.evry: no such key; did you mean toy.inner.every?"


def test_a_missing_key_is_named():
    node = OmegaConf.create({"toy": {k: v for k, v in GOOD.items() if k != "rate"}}).toy
    with pytest.raises(UserError, match=r"toy\.rate is not set"):
        config.build(node, trusted=TRUSTED)


def test_a_targets_own_complaint_gets_the_nodes_key():
    inner = {"_target_": f"{__name__}.Inner", "every": -3}
    assert mistake({"inner": inner}) == "toy.inner.every=-3: must be at least 1"


def test_a_complaint_about_something_else_stays_as_it_is():
    node = OmegaConf.create({"scene": {"_target_": f"{__name__}.Elsewhere"}}).scene
    with pytest.raises(UserError, match=r"^no transforms_train\.json in /data"):
        config.build(node, trusted=TRUSTED)


def test_unions_take_each_member_and_null():
    def made(choice: Any, either: Any) -> OneOfEach:
        node = {"_target_": f"{__name__}.OneOfEach", "choice": choice, "either": either}
        return schema.read(node, "x", (), TRUSTED).build()

    assert made(None, 1).choice is None
    assert made("a", "text").either == "text"
    with pytest.raises(UserError, match=r"x\.choice=c: choose one of a, b"):
        made("c", 1)


def test_name_is_dropped_where_the_target_does_not_ask_for_it():
    assert isinstance(build({"name": "toy"}), Toy)


def test_a_target_takes_what_it_names_of_what_the_program_offers():
    node = {"_target_": f"{__name__}.Inner", "every": 1}
    plan = schema.read(node, "model", ("aabb",), TRUSTED)
    assert plan.build(aabb="box") == Inner(1)
    with pytest.raises(UserError, match="Needs wants aabb=, but the program offers scene"):
        schema.read({"_target_": f"{__name__}.Needs", "width": 1}, "x", ("scene",), TRUSTED)


# --- Composition of the shipped presets


def composition_mistake(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        compose(overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("trainer.stepz=3", "trainer.stepz: no such key; did you mean trainer.steps?"),
        ("trainr.steps=3", "trainr.steps: no such key; did you mean trainer.steps?"),
        ("steps=3", "steps: no such key; did you mean trainer.steps?"),
        ("sampler.occ=3", "sampler.occ: no such key; did you mean sampler.grid.occ_thre?"),
        ("sede=3", "sede: no such key; did you mean seed?"),
        ("scen=lego", "scen: no such key; did you mean scene?"),
        ("scene=leggo", "scene=leggo: no such scene; did you mean scene=lego?"),
        ("model=ngpp", "model=ngpp: no such model; did you mean model=ngp?"),
        ("model=null", "model=null: no such model; there is mlp, ngp"),
        ("hydra/lancher=basic", "hydra/lancher: no such key; did you mean hydra/launcher?"),
        (
            "hydra/launcher=submitit_slurm",
            "hydra/launcher=submitit_slurm: it comes with pip install hydra-submitit-launcher",
        ),
        ("+scene=lego", "+scene=lego: it is there already: write scene=lego"),
        ("+trainer.steps=3", "it is there already: write trainer.steps=3"),
        ("model=ngp,mlp", "model=ngp,mlp: several values are a sweep: add -m"),
        ("seed", "seed: options are written key=value"),
        ("seed=[1", "cannot be read; put the value in quotes"),
        ("=3", "cannot be read"),
        ("scene.root=a b(c", "'scene.root=\"a b(c\"'"),
        ("sweep.resum=true", "sweep.resum: no such key; did you mean sweep.resume?"),
        ("experiment=blender_2mim", "did you mean experiment=blender_2min?"),
        ("~trainer.stepz", "trainer.stepz"),
    ],
)
def test_compose_refuses_with_the_remedy(override: str, line: str):
    assert line in composition_mistake("seed=2", override)


def test_suggestions_follow_the_chosen_preset():
    line = composition_mistake("sampler=uniform", "sampler.sampels=3")
    assert "sampler.num_samples" in line
    assert "occ" not in line


def test_every_preset_passes_the_checks_and_opens_with_a_description():
    conf = Source().main
    files = sorted(conf.glob("*/**/*.yaml"))
    assert files
    for file in files:
        group, _, name = file.relative_to(conf).with_suffix("").as_posix().partition("/")
        if group not in ("hydra", "sweep"):
            config.check(compose([f"{group}={name}"]))
        assert file.read_text(encoding="utf-8").startswith("# "), file


def test_a_folder_of_the_users_own_adds_presets(tmp_path: Path):
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "quick.yaml").write_text("defaults: [default]\nsteps: 7\n")
    assert compose(["trainer=quick"], Source(extra=str(tmp_path))).trainer.steps == 7
    with pytest.raises(UserError, match="there is no such folder"):
        compose([], Source(extra=str(tmp_path / "absent")))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("scene=den/swirl", "no such scene; did you mean scene=dyn/swirl?"),
        ("scene=swirl", "did you mean scene=dyn/swirl?"),
        ("scene=swrl", "did you mean scene=dyn/swirl?"),
        ("scene=twin", "did you mean scene=dyn/twin or scene=wide/twin?"),
        ("scene=dyn", "scene=dyn: no such scene; there is dyn/swirl, dyn/twin"),
        ("scene=legp", "did you mean scene=lego?"),
    ],
)
def test_presets_in_folders_are_suggested(tmp_path: Path, override: str, line: str):
    for name in ("dyn/swirl", "dyn/twin", "wide/twin"):
        file = tmp_path / "scene" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"defaults: [/scene/demo@_here_]\nname: {file.stem}\n")
    source = Source(extra=str(tmp_path))
    assert compose(["scene=dyn/swirl", "scene.resolution=7"], source).scene.name == "swirl"
    names = [cfg.scene.name for cfg in jobs(["scene=dyn/twin,dyn/swirl"], source)]
    assert names == ["twin", "swirl"]
    with pytest.raises(UserError) as error:
        compose([override], source)
    assert line in str(error.value)


CONF = data_dir("conf")
EXPERIMENTS = sorted((CONF / "experiment").rglob("*.yaml"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_experiment_can_be_run_and_says_how_it_was_measured(file: Path):
    name = file.relative_to(CONF / "experiment").with_suffix("").as_posix()
    config.check(compose([f"experiment={name}"]))
    text = file.read_text(encoding="utf-8")
    assert f"nerftrain experiment={name} " in text
    assert re.search("Protocol: |Expected on ", text)
    assert re.search("Peers?: |Expected on ", text)
    assert re.search("Ours: |Expected on ", text)


@pytest.mark.parametrize("scene", ["mip360/garden", "dnerf/hook", "transforms", "chair"])
def test_an_experiment_takes_another_scene(scene: str):
    cfg = compose(["experiment=blender/ngp_occgrid", f"scene={scene}"])
    config.check(cfg)
    assert cfg.trainer.steps == 20000


def test_broken_yaml_is_one_line(tmp_path: Path):
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "broken.yaml").write_text("a: [1\nb: {")
    with pytest.raises(UserError) as error:
        compose(["trainer=broken"], Source(extra=str(tmp_path)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        (["scene=lego", "trainer.max_seconds=15"], 18),
        (["scene=lego", "trainer.max_seconds=60"], 19),
        (["scene=lego", "trainer.max_seconds=300"], 19),
        (["scene=lego", "trainer.max_seconds=3000"], 19),
        (["scene=lego", "trainer.max_seconds=null"], 20),
        (["scene=mip360/garden", "trainer.max_seconds=15"], 19),  # which names its own time
        (["scene=dnerf/hook", "trainer.max_seconds=15"], 19),
        (["scene=lego", "model.encoding.log2_table_size=14"], 14),
    ],
)
def test_sizes_follow_the_time_that_a_run_has(overrides: list[str], size: int):
    cfg = compose([*overrides, "model=ngp", "runtime=cpu"])
    assert cfg.model.encoding.log2_table_size == size


def test_a_gpu_has_more_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nerftrain.composition._has_gpu", lambda: True)
    overrides = ["scene=lego", "trainer.max_seconds=60"]
    assert compose(overrides).model.encoding.log2_table_size == 20
    assert compose([*overrides, "runtime=cpu"]).model.encoding.log2_table_size == 19
    finest = [
        compose([*overrides, *more]).model.encoding.finest_resolution
        for more in ([], ["runtime=cpu"])
    ]
    assert finest == [2048, 512]
    steps = [compose([*overrides, *more]).trainer for more in ([], ["runtime=cpu"])]
    assert [step.sample_budget for step in steps] == [262144, 32768]
    assert [step.max_rays for step in steps] == [131072, 32768]
    assert compose(["scene=mip360/garden"]).model.encoding.log2_table_size == 19


def test_what_moves_is_warped_where_there_is_time_for_it(monkeypatch: pytest.MonkeyPatch):
    overrides = ["scene=dnerf/hook", "trainer.max_seconds=50"]
    short = [*overrides, "runtime=cpu"]
    longer = [*short, "trainer.max_seconds=150"]
    motions = [compose(choices).model.motion for choices in (short, longer)]
    assert motions == ["spacetime", "warp"]  # by its own time, whatever the scene says of sizes
    assert compose(short).optimizer.warp_lr == 0.1
    assert compose([*short, "model=mlp"]).optimizer.warp_lr == 1.0
    monkeypatch.setattr("nerftrain.composition._has_gpu", lambda: True)
    assert compose(overrides).model.motion == "warp"


def test_moments_follow_the_time_and_the_model():
    on_cpu = ["scene=lego", "runtime=cpu"]
    times = {
        seconds: list(compose([*on_cpu, f"trainer.max_seconds={seconds}"]).optimizer.betas)
        for seconds in (60, 600, 3600)
    }
    assert times == {60: [0.8, 0.95], 600: [0.8, 0.99], 3600: [0.8, 0.99]}
    mlp = compose([*on_cpu, "trainer.max_seconds=60", "model=mlp"])
    assert list(mlp.optimizer.betas) == [0.9, 0.99]


def test_a_sweep_is_composed_in_full():
    found = [(cfg.seed, cfg.model.name) for cfg in jobs(["seed=1,2", "model=ngp,mlp"], Source())]
    assert found == [(1, "ngp"), (1, "mlp"), (2, "ngp"), (2, "mlp")]


def test_what_is_not_swept_may_be_of_the_swept_presets():
    overrides = ["scene=lego,chair", "scene.downscale=2", "seed=3"]
    assert [cfg.scene.downscale for cfg in jobs(overrides, Source())] == [2, 2]
    prepared = for_hydra(overrides, Source())
    assert prepared == ["scene=lego,chair", "scene.downscale=choice(2)", "seed=3"]
    with pytest.raises(UserError, match=r"did you mean scene\.downscale"):
        list(jobs(["scene=lego,chair", "scene.dwonscale=2"], Source()))


@pytest.mark.parametrize(
    "value",
    ["2", "a b", "/data/nerf_synthetic", "[1,2]", "{a: 1}", "'x,y'", "null", "", "1e-3", "$"],
)
def test_values_left_to_the_jobs_stay_the_same(value: str):
    parser = OverridesParser.create()
    text = f"+scene.root={value}"
    (prepared, _) = for_hydra([text, "scene=lego,chair"], Source())
    override = parser.parse_override(prepared)
    if override.is_sweep_override():
        (prepared,) = (f"+scene.root={v}" for v in override.sweep_string_iterator())
    assert parser.parse_override(prepared).value() == parser.parse_override(text).value()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=interval(1,2)", "does not support sweep type"),
        ("scene=glob(zz*)", "scene=glob(zz*): is no value at all"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_line(override: str, line: str):
    with pytest.raises(UserError) as error:
        list(jobs([override], Source()))
    assert line in str(error.value)


def test_a_glob_sweeps_over_presets():
    found = [cfg.scene.name for cfg in jobs(["scene=glob(m*)", "scene.near=1"], Source())]
    assert found == ["materials", "mic"]


def test_the_folder_of_a_sweep_is_one():
    assert sweep_dir(["seed=1,2", "hydra.sweep.dir=a b/${seed}"], Source()) == Path("a b/1")
    with pytest.raises(UserError, match=r"hydra\.sweep\.dir: .*hydra\.sweep\.subdir"):
        sweep_dir(["hydra.sweep.dir=${hydra.job.num}"], Source())
    overrides = ["hydra.sweep.dir=x", "seed=1"]
    assert with_sweep_dir(overrides, Path("a/b-c.d")) == ["seed=1", "hydra.sweep.dir=a/b-c.d"]
    quoted = with_sweep_dir(overrides, Path("it's (here)"))[-1]
    assert sweep_dir([quoted], Source()) == Path("it's (here)")


def test_a_large_sweep_is_covered_value_by_value(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nerftrain.composition._MOST_JOBS_CHECKED", 3)
    found = list(jobs(["seed=1,2,3", "trainer.steps=range(1,4)"], Source()))
    assert {cfg.seed for cfg in found} == {1, 2, 3}
    assert {cfg.trainer.steps for cfg in found} == {1, 2, 3}
    assert len(found) < 9


def test_a_sweep_is_told_by_its_flag_or_its_mode():
    assert is_sweep(["seed=1,2"], Source(), True)
    assert is_sweep(["hydra.mode=MULTIRUN"], Source(), False)
    assert not is_sweep(["seed=1"], Source(), False)


# --- The whole config


class ToyRuntime:
    def __init__(self, log: list[str]) -> None:
        self.torch_device = "cpu"
        self.log = log

    def start(self, seed: int) -> None:
        self.log.append(f"seed {seed}")


class Movable:
    def __init__(self, **values: Any) -> None:
        self.values = values

    def to(self, device: str) -> Movable:
        return Movable(**self.values, device=device)

    def parameters(self) -> list[int]:
        return [1, 2]


TRAIN = {"train": SimpleNamespace(cameras="cameras", masks=lambda: "masks", valid=None)}


def toy_scene(name: str, root: str | None, alpha: bool) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        root=root,
        has_alpha=alpha,
        aabb="box",
        near=2.0,
        far=6.0,
        contraction="none",
        is_dynamic=False,
        splits=TRAIN,
    )


def toy_background(train: str) -> SimpleNamespace:
    return SimpleNamespace(train=train)


def toy_model(width: int, *, aabb: Any) -> Movable:
    return Movable(width=width, aabb=aabb)


def toy_sampler(*, aabb: Any, cameras: Any, near: float, masks: Any) -> Movable:
    return Movable(aabb=aabb, cameras=cameras, near=near, masks=masks)


def toy_optimizer(lr: float, *, model: Any) -> Any:
    return (lr, model)


def plain_object() -> object:
    return object()


@dataclass
class ToyRun:
    scene: object
    model: object
    sampler: object
    refinement: object
    optimizer: object
    scheduler: object
    background: object
    settings: object
    runtime: object
    logger: object
    seed: int
    config: dict[str, Any]
    run_dir: Path


def whole(**changes: Any) -> Any:
    def node(target: str, **values: Any) -> dict[str, Any]:
        return {"_target_": f"{__name__}.{target}", **values}

    values = {
        "seed": 1,
        "data_root": None,
        "run_dir": None,
        "trusted": [__name__],
        "runtime": node("ToyRuntime", log=[]),
        "scene": node("toy_scene", name="cube", root="data/cube", alpha=True),
        "background": node("toy_background", train="random"),
        "model": node("toy_model", name="net", width=3),
        "sampler": node("toy_sampler", name="grid"),
        "optimizer": node("toy_optimizer", lr=1),
        "scheduler": node("plain_object"),
        "trainer": node("Inner", every=1),
        "logger": node("plain_object"),
    }
    cfg = OmegaConf.create(values)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, merge=False)
    return cfg


@pytest.fixture
def toy_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("nerftrain.trainer")
    module.Run = ToyRun  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nerftrain.trainer", module)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"seed": "x"}, "seed=x: must be a whole number"),
        ({"sweep": {"resume": 1}}, "sweep.resume=1: must be true or false"),
        ({"sweep": {"resum": True}}, "sweep.resum: no such key; did you mean sweep.resume?"),
        ({"sweep": True}, "sweep=true: write sweep.resume=true or false"),
        ({"seeds": 2}, "seeds: no such key; did you mean seed?"),
        ({"model": 3}, "model=3: choose one with model=NAME"),
        ({"model": None}, "model is not set: choose one with model=NAME"),
        ({"trainer__every": -3}, "trainer.every=-3: must be at least 1"),
        ({"trainer__evry": 3}, "trainer.evry: no such key; did you mean trainer.every?"),
        ({"trusted": []}, "add trusted=["),
        ({"seed": -1}, "seed=-1: must be at least 0, and below 2^64"),
        ({"seed": 99999999999999999999999}, "seed=99999999999999999999999: must be less than 2^64"),
        ({"run_dir": ""}, "run_dir='': names no folder; give one"),
        ({"run_dir": " "}, "run_dir=' ': names no folder; give one"),
        ({"data_root": "${nowhere}"}, "nowhere"),
    ],
)
def test_check_refuses_before_anything_is_built(change: dict[str, Any], line: str):
    with pytest.raises(UserError) as error:
        config.check(whole(**change))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("toy_trainer")
def test_assemble_gives_each_part_what_it_needs():
    run = config.assemble(whole())
    assert run.runtime.log == ["seed 1"]
    assert run.model.values == {"width": 3, "aabb": "box", "device": "cpu"}
    expected = {"aabb": "box", "masks": "masks", "cameras": "cameras", "near": 2.0, "device": "cpu"}
    assert run.sampler.values == expected
    assert run.optimizer == (1.0, run.model)
    assert run.config["scene"]["root"] == str(Path("data/cube").absolute())


@pytest.mark.parametrize(
    ("group", "target", "kind"),
    [
        ("scene", "nerftrain.paths.data_dir", "nerftrain.scenes.Scene"),
        ("model", "torch.nn.Identity", "nerftrain.models.RadianceField"),
        ("sampler", "torch.nn.Identity", "nerftrain.samplers.Sampler"),
        ("scheduler", "torch.nn.Identity", "nerftrain.schedules.Schedule"),
    ],
)
def test_a_part_of_another_kind_is_refused(group: str, target: str, kind: str):
    cfg = compose(["scene.resolution=16", "scene.num_train=3", "scene.num_test=1"])
    value = {"name": "conf"} if group == "scene" else {}
    OmegaConf.update(cfg, group, {"_target_": target, **value}, merge=False)
    cfg.trusted = ["torch.nn"]
    with pytest.raises(UserError) as error:
        config.assemble(cfg)
    assert str(error.value).startswith(f"{group}._target_=")
    assert str(error.value).endswith(f"must give a {kind}")


def test_a_logger_may_be_of_any_kind():
    cfg = compose(["scene.resolution=16", "scene.num_train=3", "scene.num_test=1"])
    OmegaConf.update(cfg, "logger", {"_target_": "torch.nn.Identity"}, merge=False)
    cfg.trusted = ["torch.nn"]
    assert type(config.assemble(cfg).logger).__name__ == "Identity"


@pytest.mark.usefixtures("toy_trainer")
def test_a_random_background_needs_alpha():
    with pytest.raises(UserError, match="cube has not: leave it out"):
        config.assemble(whole(scene__alpha=False))
    config.assemble(whole(scene__alpha=False, background__train="white"))


@pytest.mark.usefixtures("toy_trainer")
def test_torchs_own_optimizers_get_the_parameters(monkeypatch: pytest.MonkeyPatch):
    import torch

    parameter = torch.nn.Parameter(torch.zeros(1))
    weight = torch.nn.Parameter(torch.zeros(1))
    owners = {"width": [parameter], "near": [weight]}  # a model has a width, a sampler a near

    def parameters(self: Movable) -> list[torch.nn.Parameter]:
        return [p for key, ps in owners.items() if key in self.values for p in ps]

    monkeypatch.setattr(Movable, "parameters", parameters)
    run = config.assemble(whole(optimizer={"_target_": "torch.optim.SGD", "lr": 1}))
    assert run.optimizer.param_groups[0]["params"] == [parameter, weight]


@pytest.mark.usefixtures("toy_trainer")
def test_the_run_folder_is_named_by_the_choices_and_never_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    run = config.assemble(whole())
    assert list(tmp_path.iterdir()) == []
    folders = {config.create_run_dir(run).run_dir for _ in range(3)}
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {Path("outputs/cube/net-grid")}
    again = config.load_run(folders.pop(), [], trust=True)
    assert config.plain(again) == run.config


@pytest.mark.usefixtures("toy_trainer")
def test_a_run_folder_that_holds_a_run_or_cannot_be_written_is_refused(tmp_path: Path):
    run = config.assemble(whole(run_dir=str(tmp_path / "run")))
    config.create_run_dir(run)
    with pytest.raises(UserError, match="holds a run: choose another"):
        config.create_run_dir(run)
    (tmp_path / "file").write_text("")
    run = config.assemble(whole(run_dir=str(tmp_path / "file" / "run")))
    with pytest.raises(UserError, match=r"cannot be written .*choose another with run_dir=PATH"):
        config.create_run_dir(run)


@pytest.mark.usefixtures("toy_trainer")
def test_the_folder_of_a_job_that_holds_a_run_is_refused(tmp_path: Path):
    run = config.create_run_dir(config.assemble(whole()), tmp_path / "0")
    with pytest.raises(UserError, match=r"holds a run: add sweep\.resume=true"):
        config.create_run_dir(run, tmp_path / "0")
    assert config.free_folder(tmp_path / "0") == tmp_path / "0-2"
    assert config.free_folder(tmp_path / "1") == tmp_path / "1"


def left(folder: Path, *files: str, **changes: Any) -> Path:
    """Leave a run of the whole config, with changes, as a process would have."""
    run = config.assemble(whole(**changes))
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return config.create_run_dir(run, folder).run_dir


@pytest.mark.usefixtures("toy_trainer")
def test_a_run_of_the_same_config_is_found_wherever_it_lies(tmp_path: Path):
    checkpoint = "checkpoints/last.pt"
    left(tmp_path / "a/0", "metrics.json", seed=2)
    left(tmp_path / "a/1", data_root="/elsewhere")  # neither finished nor begun
    assert config.find_run(whole(), [tmp_path]) is None
    killed = left(tmp_path / "a/2", "checkpoints/best.pt")  # before its first last.pt
    assert config.find_run(whole(), [tmp_path]) == (killed, False)
    begun = left(tmp_path / "a/deep/2", checkpoint)
    assert config.find_run(whole(), [tmp_path / "absent", tmp_path]) == (begun, False)
    left(
        tmp_path / "b/1", "metrics.json"
    )  # interrupted after its figures, and without a checkpoint
    assert config.find_run(whole(), [tmp_path]) == (begun, False)
    files = checkpoint, "metrics.json", "REPORT.md"
    done = left(tmp_path / "b/0", *files, sweep={"resume": True})
    assert config.find_run(whole(), [tmp_path]) == (done, True)
    assert config.find_run(whole(seed=3), [tmp_path]) is None
    assert config.find_run(whole(run_dir=str(begun)), [tmp_path]) == (begun, False)
    (done / config.SNAPSHOT).write_text("a: [1")
    assert config.find_run(whole(), [tmp_path]) == (begun, False)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    OmegaConf.save(whole(), tmp_path / config.SNAPSHOT)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seed": 2}, "seed=2: the run has begun with seed=1 and stays with it; leave it out"),
        ({"scene__hints": {"seconds": 9}}, "scene.hints.seconds=9: the run has begun with"),
        ({"data_root": "/new"}, "leave it out, or scene.root=PATH for a scene that has moved"),
        ({"scene__root": "/new"}, "scene.root=/new: the run's scene can still be read with"),
        ({"scene__root": "/new", "scene__alpha": False}, "scene.alpha=false: the run has begun"),
        (
            {"run_dir": "/new"},
            "run_dir=/new: a run is gone on with where it lies; leave it out, or",
        ),
    ],
)
def test_a_run_stays_with_its_seed_and_its_data(changes: dict[str, Any], line: str):
    recorded = whole(scene__hints={"seconds": 300})
    config.check_same_data(recorded, recorded)
    with pytest.raises(UserError) as error:
        config.check_same_data(recorded, whole(**{"scene__hints": {"seconds": 300}, **changes}))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_the_same_values_again_are_no_change():
    again = whole(scene__root=str(Path("data/cube").absolute()), trainer__every=7)
    config.check_same_data(whole(), again)


@pytest.mark.parametrize("kind", [UserError, OSError])
def test_a_scene_may_be_elsewhere_where_it_cannot_be_read_any_more(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
):
    def gone(name: str, root: str, alpha: bool) -> None:
        raise kind(f"{root} is gone")

    monkeypatch.setitem(globals(), "toy_scene", gone)
    config.check_same_data(whole(), whole(scene__root="/new"))
    with pytest.raises(UserError, match=r"the run has begun with scene\.alpha=true"):
        config.check_same_data(whole(), whole(scene__root="/new", scene__alpha=False))


def test_a_runs_config_takes_overrides_of_its_keys(run_dir: Path):
    cfg = config.load_run(run_dir, ["trainer.every=5", "optimizer.lr=0.5"], trust=True)
    assert (cfg.trainer.every, cfg.optimizer.lr) == (5, 0.5)


def test_a_run_of_an_older_version_computes_as_todays_presets_say(tmp_path: Path):
    cfg = compose(["scene=demo", "runtime=cpu"])
    OmegaConf.set_struct(cfg, False)
    del cfg.runtime["cuda_graph"]
    OmegaConf.save(cfg, tmp_path / config.SNAPSHOT)
    runtime = config.load_run(tmp_path, ["runtime.cuda_graph=false"]).runtime
    assert (runtime.device, runtime.cuda_graph) == ("cpu", False)
    assert config.load_run(tmp_path, []).runtime.cuda_graph is True


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("trainer.evry=5", "did you mean trainer.every?"),
        ("model=mlp", "would make another run"),
        ("+trainer.x=5", "takes key=value of keys that it has"),
        ("seed=1,2", "a sweep starts new runs"),
        ("seed", "options are written key=value"),
    ],
)
def test_a_runs_config_refuses_with_the_remedy(run_dir: Path, override: str, line: str):
    with pytest.raises(UserError) as error:
        config.load_run(run_dir, [override], trust=True)
    assert line in str(error.value)


def test_a_run_cannot_declare_itself_trusted(run_dir: Path):
    with pytest.raises(UserError, match="add --trust"):
        config.load_run(run_dir, [])


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="is no run"):
        config.load_run(tmp_path, [])
    (tmp_path / config.SNAPSHOT).write_text("a: [1\nb: {")
    with pytest.raises(UserError, match="cannot be read"):
        config.load_run(tmp_path, [])
    (tmp_path / config.SNAPSHOT).write_text("- a\n- b\n")
    with pytest.raises(UserError, match="cannot be read"):
        config.load_run(tmp_path, [])
