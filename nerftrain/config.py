"""From a composed config to the objects and the folder of a run: check, build, assemble, snapshot.

Free of torch at import; below this module a config is plain Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nerftrain import schema
from nerftrain.composition import apply_override, compose, interpolation_mistake, one_line
from nerftrain.errors import UserError
from nerftrain.paths import check_reach, data_dir

if TYPE_CHECKING:
    from nerftrain.scenes import Scene
    from nerftrain.trainer import Run

__all__ = [
    "assemble",
    "build",
    "check",
    "check_has_effect",
    "check_same_data",
    "compose",
    "create_run_dir",
    "load_run",
]

SNAPSHOT = "config.yaml"  # the resolved config in a run's folder
_ANOTHER_FOLDER = "choose another with run_dir=PATH"

# The config's groups in the order of building, and the objects that the program offers to each.
_GROUPS: dict[str, tuple[str, ...]] = {
    "runtime": (),
    "scene": (),
    "background": ("has_alpha",),
    "model": ("aabb", "contraction", "is_dynamic"),
    "sampler": ("aabb", "contraction", "cameras", "near", "far", "masks", "make_field"),
    "refine": ("cameras", "aabb", "has_alpha"),
    # Ours takes what learns, torch's own take the parameters.
    "optimizer": ("model", "sampler", "refinement", "params"),
    "scheduler": (),
    "trainer": (),
    "logger": (),
}
_VALUES = {
    "seed": int,
    "data_root": str | None,
    "run_dir": str | None,
    "trusted": list[str],
}
_SWEEP = {"resume": bool}  # of the whole sweep, so no part of a run; old runs do not have it
_PATHS = ("root", "data_root")  # keys of a scene
# What a run stays with once it has begun, and the keys of it that only say where the data lie.
_LASTING = ("seed", "data_root", "scene")
_PLACES = ("scene.root", "scene.data_root", "scene.images")
# What says nothing to a run that is looked at, not trained.
_OF_TRAINING = ("seed", "data_root", "run_dir", "optimizer", "scheduler", "trainer", "logger")
# A run is the same with other values of these; what data_root is used for, the scene holds too.
_INDIFFERENT = ("run_dir", "data_root", "trusted", "logger")


# --- Checks --------------------------------------------------------------------------------------


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolve a config into plain Python: what a run's folder keeps as its snapshot.

    Raises:
        UserError: an interpolation that leads nowhere.
    """
    try:
        container = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        if problem := interpolation_mistake(error, cfg):
            raise UserError(problem) from None
        key = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{key}{one_line(error)}") from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def check(cfg: DictConfig) -> dict[str, schema.Plan]:
    """Check every key, type, choice and range that can be checked without data; build nothing.

    Returns:
        For each group what will be built, in the order of building.

    Raises:
        UserError: the first mistake, in one line with the remedy.
    """
    values = plain(cfg)
    for key, hint in _VALUES.items():
        schema.convert(values.get(key, "???"), hint, key)
    if not 0 <= values["seed"] < 2**64:
        raise UserError(f"seed={schema.shown(values['seed'])}: must be at least 0, and below 2^64")
    for key in values:
        if key not in _VALUES and key not in _GROUPS and key != "sweep":
            known = [*_GROUPS, *_VALUES, "sweep"]
            raise UserError(f"{key}: no such key; {schema.suggestion(key, known)}")
    if values["run_dir"] is not None and not values["run_dir"].strip():
        raise UserError(
            f"run_dir='{values['run_dir']}': names no folder; give one, run_dir=. for this one, or "
            "run_dir=null for a new one in outputs"
        )
    _check_sweep(values.get("sweep", {}))
    trusted = (*schema.TRUSTED, *values["trusted"])
    values.setdefault("refine", _no_refinement())
    plans = {group: _plan(group, values.get(group), trusted) for group in _GROUPS}
    for plan in plans.values():
        plan.check_values()
    return plans


def _no_refinement() -> dict[str, Any]:
    """Read what configs mean that do not say it, such as those of older versions."""
    preset = OmegaConf.load(data_dir("conf") / "refine" / "none.yaml")
    assert isinstance(preset, DictConfig)
    return plain(preset)


def _check_sweep(node: Any) -> None:
    if not isinstance(node, Mapping):
        raise UserError(f"sweep={schema.shown(node)}: write sweep.resume=true or false")
    for key, value in node.items():
        if key not in _SWEEP:
            raise UserError(f"sweep.{key}: no such key; {schema.suggestion(key, _SWEEP, 'sweep.')}")
        schema.convert(value, _SWEEP[key], f"sweep.{key}")


def build(node: DictConfig, *, trusted: Sequence[str] = schema.TRUSTED, **runtime: Any) -> Any:
    """Check a node and build the object that it names, nested nodes first.

    Args:
        node: a node of a composed config, with ``_target_``.
        trusted: prefixes of names that nodes may hold in ``_target_``.
        runtime: objects for the target's keyword-only parameters.

    Raises:
        UserError: a mistake in the node, or the target's own complaint.
    """
    where = str(node._get_full_key(None))
    return schema.read(plain(node), where, tuple(runtime), trusted).build(**runtime)


def scene_plan(kind: str) -> schema.Plan:
    """Read the preset of a kind of scene, to be built with other values.

    Raises:
        UserError: there is no such preset, or it has a mistake.
    """
    return _plan("scene", plain(compose([f"scene={kind}"]))["scene"], schema.TRUSTED)


def _plan(group: str, node: Any, trusted: Sequence[str]) -> schema.Plan:
    if not isinstance(node, Mapping):
        got = f"{group}={schema.shown(node)}" if node is not None else f"{group} is not set"
        raise UserError(f"{got}: choose one with {group}=NAME; nerftrain --help lists them")
    return schema.read(node, group, _GROUPS[group], trusted)


# --- Assembly ------------------------------------------------------------------------------------


def assemble(cfg: DictConfig, run_dir: Path | None = None) -> Run:
    """Check a config and build all objects of a run; data are loaded, no file is written.

    Args:
        cfg: a composed config.
        run_dir: the run's folder where it exists already; otherwise ``create_run_dir`` fills it in.

    Raises:
        UserError: a mistake in the config, in the data, or in their combination.
    """
    plans = check(cfg)
    from nerftrain.trainer import Run

    kinds = get_type_hints(Run)
    seed = cfg.seed
    runtime = _build_as(kinds["runtime"], plans["runtime"])
    runtime.start(seed)
    scene = _build_as(kinds["scene"], plans["scene"])
    background = _build_as(kinds["background"], plans["background"], has_alpha=scene.has_alpha)
    if background.train == "random" and not scene.has_alpha:
        raise UserError(
            f"background=random needs images with alpha, which {scene.name} has not: "
            "leave it out, or add background=black"
        )
    make_field = partial(
        _build_as,
        kinds["model"],
        plans["model"],
        aabb=scene.aabb,
        contraction=scene.contraction,
        is_dynamic=scene.is_dynamic,
    )
    model = make_field().to(runtime.torch_device)
    refinement = _build_as(
        kinds["refinement"],
        plans["refine"],
        cameras=scene.splits["train"].cameras,
        aabb=scene.aabb,
        has_alpha=scene.has_alpha,
    )
    refinement = refinement.to(runtime.torch_device)
    inputs = _sampler_inputs(scene, refinement.poses_are_true)
    sampler = _build_as(kinds["sampler"], plans["sampler"], **inputs, make_field=make_field)
    if scene.splits["train"].valid is not None:
        sampler.live_pixels = scene.splits["train"].drawable(sampler.live_pixels)
    sampler = sampler.to(runtime.torch_device)
    learning = {"model": model, "sampler": sampler, "refinement": refinement}
    params = [{"params": [*model.parameters(), *sampler.parameters()]}, *refinement.groups()]
    return Run(
        scene=scene,
        model=model,
        sampler=sampler,
        refinement=refinement,
        optimizer=_build_as(kinds["optimizer"], plans["optimizer"], **learning, params=params),
        scheduler=_build_as(kinds["scheduler"], plans["scheduler"]),
        background=background,
        settings=_build_as(kinds["settings"], plans["trainer"]),
        runtime=runtime,
        logger=plans["logger"].build(),  # whatever has the methods of report.TensorBoard
        seed=seed,
        config=_snapshot(plain(cfg)),
        run_dir=run_dir or Path(),
    )


def _build_as(kind: type, plan: schema.Plan, **runtime: Any) -> Any:
    """Build what a run is to hold; something of another kind would fail anywhere later."""
    made = plan.build(**runtime)
    if not isinstance(made, kind):
        target = f"{plan.target.__module__}.{plan.target.__qualname__}"
        raise UserError(
            f"{plan.where}._target_={target}: gives {type(made).__name__}, must "
            f"give a {kind.__module__}.{kind.__qualname__}"
        )
    return made


def _sampler_inputs(scene: Scene, poses_are_true: bool) -> dict[str, Any]:
    seen = scene.splits["train"]
    return {
        "aabb": scene.aabb,
        "contraction": scene.contraction,
        "cameras": seen.cameras,
        "near": scene.near,
        "far": scene.far,
        # What moves is transparent in one image and not in the next: no mask rules a cell out.
        # Nor does one that was taken from elsewhere.
        "masks": seen.masks() if poses_are_true and not scene.is_dynamic else None,
    }


def _snapshot(values: dict[str, Any]) -> dict[str, Any]:
    """Make paths absolute: the run has to be found again from any working directory."""
    values.pop("sweep", None)
    scene = values["scene"]
    for key in _PATHS:
        if scene.get(key) is not None:
            scene[key] = str(Path(scene[key]).expanduser().absolute())
    return values


def create_run_dir(run: Run, job_dir: Path | None = None) -> Run:
    """Create the run's folder with the snapshot of its config, and return the run with the folder.

    Args:
        run: an assembled run.
        job_dir: the folder that a sweep has given to this job.

    Raises:
        UserError: the folder holds a run already or cannot be written.
    """
    chosen = run.config["run_dir"]
    try:
        if chosen is not None or job_dir is not None:
            folder = Path(chosen).expanduser() if chosen is not None else Path(str(job_dir))
            _refuse_a_runs_folder(folder, of_sweep=chosen is None)
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = _new_folder(run)
    except OSError as error:
        raise _unwritable(error, _ANOTHER_FOLDER) from None
    write_snapshot(run.config, folder)
    return replace(run, run_dir=folder)


def _refuse_a_runs_folder(folder: Path, of_sweep: bool) -> None:
    if not (folder / SNAPSHOT).exists():
        return
    if of_sweep:
        raise UserError(
            f"{folder} holds a run: add sweep.resume=true, "
            "or choose another folder with hydra.sweep.dir=PATH"
        )
    raise UserError(
        f"run_dir={folder} holds a run: choose another, or go on with nerftrain resume {folder}"
    )


def write_snapshot(values: Mapping[str, Any], run_dir: Path, remedy: str = _ANOTHER_FOLDER) -> None:
    """Write ``config.yaml`` whole or not at all; the remedy is for a folder that does not take it.

    Raises:
        UserError: the folder cannot be written.
    """
    partial = run_dir / f".{SNAPSHOT}"
    try:
        OmegaConf.save(OmegaConf.create(dict(values)), partial)
        partial.replace(run_dir / SNAPSHOT)
    except OSError as error:
        raise _unwritable(error, remedy) from None


def _unwritable(error: OSError, remedy: str) -> UserError:
    why = f"{error.strerror}: {error.filename}"
    return UserError(f"the run's folder cannot be written ({why}): {remedy}")


def _new_folder(run: Run) -> Path:
    names = f"{_label(run.config['model'])}-{_label(run.config['sampler'])}"
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    parent = Path("outputs", run.scene.name, names)
    parent.mkdir(parents=True, exist_ok=True)
    count = 1
    while True:  # mkdir decides between two runs that start in the same second
        folder = parent / (stamp if count == 1 else f"{stamp}-{count}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            count += 1


def _label(node: Mapping[str, Any]) -> str:
    return str(node.get("name") or node["_target_"].rpartition(".")[2])


def names(cfg: DictConfig) -> dict[str, str]:
    """Return what the chosen scene, model and sampler are called."""
    values = plain(cfg)
    return {group: _label(values[group]) for group in ("scene", "model", "sampler")}


# --- Runs of the same config ---------------------------------------------------------------------


def resumes_sweep(cfg: DictConfig) -> bool:
    """Tell whether jobs of a sweep take up what earlier ones have left."""
    return bool(OmegaConf.select(cfg, "sweep.resume", default=False))


def find_run(cfg: DictConfig, places: Sequence[Path]) -> tuple[Path, bool] | None:
    """Find a run of the very same config, as conf/sweep/default.yaml defines it.

    Args:
        cfg: a composed config.
        places: folders to look in, and in the folders within; where the config has a run_dir it
            can only be there.

    Returns:
        The folder, and whether the run is finished; one that is not has a checkpoint. None where
        there is none.
    """
    wanted = _snapshot(plain(cfg))
    chosen = wanted["run_dir"]
    if chosen is not None:
        places = [Path(chosen).expanduser()]
    same = [
        folder
        for place in places
        for folder in run_dirs(place)
        if _essence(_read_snapshot(folder / SNAPSHOT)) == _essence(wanted)
    ]
    # Figures come first of what a run leaves, and the report last.
    for files, finished in (
        (("metrics.json", "REPORT.md"), True),
        (("checkpoints/last.pt",), False),
        (("checkpoints/best.pt",), False),  # killed before its first last.pt
    ):
        for folder in same:
            if all((folder / file).is_file() for file in files):
                return folder, finished
    return None


def run_dirs(place: Path) -> Iterator[Path]:
    """List the folders of runs in a folder; what lies within a run is none."""
    if (place / SNAPSHOT).is_file():
        yield place
    elif place.is_dir():
        for folder in sorted(path for path in place.iterdir() if path.is_dir()):
            yield from run_dirs(folder)


def free_folder(job_dir: Path) -> Path:
    """Return a job's folder, or one beside it where it holds a run."""
    count, folder = 1, job_dir
    while (folder / SNAPSHOT).exists():
        count += 1
        folder = job_dir.with_name(f"{job_dir.name}-{count}")
    return folder


def _essence(values: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if key not in _INDIFFERENT}
    return {"refine": _no_refinement(), **kept}


def _read_snapshot(file: Path) -> dict[str, Any]:
    return _parsed_snapshot(file, file.stat().st_mtime_ns)


@cache  # every job of a sweep looks through the same files
def _parsed_snapshot(file: Path, changed: int) -> dict[str, Any]:
    try:
        cfg = OmegaConf.load(file)
        return plain(cfg) if isinstance(cfg, DictConfig) else {}
    except Exception:  # a damaged file is nobody's run
        return {}


# --- A run's own config --------------------------------------------------------------------------


def load_run(run_dir: Path, overrides: Sequence[str], trust: bool = False) -> DictConfig:
    """Read a run's own config and apply ``key=value`` overrides to it.

    Args:
        run_dir: the run's folder.
        overrides: of keys that the run has; its choices of scene, model and so on stay.
        trust: keep the prefixes that this config itself declares trusted.

    Raises:
        UserError: no run there, a config that cannot be read, an override of no key of the run.
    """
    file = run_dir / SNAPSHOT
    check_reach(file)
    if not file.is_file():
        raise UserError(
            f"{run_dir} is no run: it has no {SNAPSHOT}; "
            "runs lie in outputs/SCENE/MODEL-SAMPLER/TIME"
        )
    try:
        cfg = OmegaConf.load(file)
        if not isinstance(cfg, DictConfig):
            raise ValueError("it holds no keys")
    except Exception as error:  # whatever YAML makes of a damaged file
        raise UserError(f"{file} cannot be read: {one_line(error)}") from None
    # A folder from elsewhere must not choose what may be imported and called.
    if cfg.get("trusted") and not trust:
        raise UserError(
            f"{file} trusts {', '.join(cfg.trusted)}: add --trust where this run is yours"
        )
    _add_runtime(cfg)
    for text in overrides:
        apply_override(cfg, text, fixed=tuple(_GROUPS))
    return cfg


def check_same_data(recorded: DictConfig, cfg: DictConfig) -> None:
    """Refuse to go on with a run on other data or with another seed: its figures are of one.

    The scene may be read from another place where it cannot be read at the recorded one any more.
    That the same images lie there is taken on trust.

    Args:
        recorded: the run's own config.
        cfg: the config to go on with.

    Raises:
        UserError: a changed value of ``seed``, ``data_root``, ``run_dir`` or the scene, or a
            mistake in ``cfg``.
    """
    check(cfg)
    if cfg.get("run_dir") != recorded.get("run_dir"):
        raise UserError(
            f"run_dir={cfg.run_dir}: a run is gone on with where it lies; leave it out, or copy "
            "the run's folder and resume the copy"
        )
    before, after = ({k: _snapshot(plain(c))[k] for k in _LASTING} for c in (recorded, cfg))
    changed = dict(_changes(before, after))
    for key, (old, new) in changed.items():
        if key not in _PLACES:
            moved = ", or scene.root=PATH for a scene that has moved" if key == "data_root" else ""
            raise UserError(
                f"{key}={schema.shown(new)}: the run has begun with {key}={schema.shown(old)} and "
                f"stays with it; leave it out{moved}, or start another run"
            )
    if changed and _can_be_read(recorded):
        key, (old, new) = next(iter(changed.items()))
        raise UserError(
            f"{key}={schema.shown(new)}: the run's scene can still be read with "
            f"{key}={schema.shown(old)}; leave it out, or start another run"
        )


def check_has_effect(overrides: Sequence[str], draws: bool) -> None:
    """Refuse overrides that only training would notice: figures would be taken to be of them.

    Args:
        overrides: as ``load_run`` has taken them.
        draws: whether something is drawn by the seed.

    Raises:
        UserError: the first such override.
    """
    for text in overrides:
        group = text.partition("=")[0].partition(".")[0]
        if group in _OF_TRAINING and not (draws and group == "seed"):
            moved = ", or give scene.root=PATH for a scene that has moved"
            raise UserError(
                f"{text}: has no effect on what has been trained; leave it out"
                f"{moved if group == 'data_root' else ''}"
            )


def _changes(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """List the dotted keys whose values differ, each with both."""
    for name, new in after.items():
        key, old = f"{prefix}{name}", before.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, f"{key}.")
        elif old != new:
            yield key, (old, new)


def _can_be_read(recorded: DictConfig) -> bool:
    try:
        check(recorded)["scene"].build()
    except (UserError, OSError):  # the latter from a file system that is gone
        return False
    return True


def _add_runtime(cfg: DictConfig) -> None:
    """Let a run of an older version compute as today's presets say where its config says nothing.

    What it learnt does not depend on these keys.
    """
    today = OmegaConf.load(data_dir("conf") / "runtime" / "auto.yaml")
    runtime = cfg.get("runtime")
    if not isinstance(runtime, DictConfig) or not isinstance(today, DictConfig):
        return
    if runtime.get("_target_") == today.get("_target_"):
        cfg.runtime = OmegaConf.merge(today, runtime)
