"""Hydra's part of the configuration: from presets and overrides to one config, or to a remedy.

Every error of Hydra and OmegaConf leaves this module as one line that says what to write instead.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nerftrain import schema
from nerftrain.errors import UserError
from nerftrain.paths import check_reach, data_dir

VERSION_BASE = "1.3"  # of Hydra's behaviour
CONFIG_NAME = "config"
_MOST_JOBS_CHECKED = 64  # of a sweep, all: a composition takes 50 ms


@dataclass(frozen=True)
class Source:
    """Where configs come from: this project's folder, and one of the user's that adds to it."""

    main: Path = field(default_factory=lambda: data_dir("conf"))
    extra: str | None = None
    name: str = CONFIG_NAME


# --- Interpolation -------------------------------------------------------------------------------

_GPU = 200.0  # what a GPU does in a second takes a few CPU cores so many (docs/benchmarks/gpu.md)


def _by_time(table: Mapping[Any, Any], *, _root_: DictConfig) -> Any:
    """Choose from {seconds: value} the value for a run that may train as long as that.

    Training seconds are trainer.max_seconds on a few CPU cores; hints.seconds of the scene or the
    model says that another time's choices are better for them.
    """
    for group in ("model", "scene"):
        said = _seconds(f"{group}.hints.seconds", _root_)
        if said is not None:
            return _first_from(table, said)
    return _by_own_time(table, _root_=_root_)


def _by_own_time(table: Mapping[Any, Any], *, _root_: DictConfig) -> Any:
    """Choose as `by_time` does, whatever scenes and models say."""
    seconds = _seconds("trainer.max_seconds", _root_)
    factor = _by_device({"cpu": 1.0, "cuda": _GPU}, _root_=_root_)
    return _first_from(table, float("inf") if seconds is None else factor * seconds)


def _seconds(key: str, root: DictConfig) -> float | None:
    """Read a number of seconds, which is used before the config as a whole is checked.

    Raises:
        UserError: it is none; else a key whose value depends on it would be blamed.
    """
    return schema.convert(OmegaConf.select(root, key), float | None, key)


def _first_from(table: Mapping[Any, Any], seconds: float) -> Any:
    return table[min((key for key in table if seconds <= float(key)), key=float)]


def _by_device(table: Mapping[str, Any], *, _root_: DictConfig) -> Any:
    """Choose from {cpu: value, cuda: value} by what the run will compute on."""
    gpu = OmegaConf.select(_root_, "runtime.device") != "cpu" and _has_gpu()
    return table["cuda" if gpu else "cpu"]


def _has_gpu() -> bool:
    from nerftrain.ops import toolkit  # and torch, which takes a second to import

    return toolkit.has_gpu()


OmegaConf.register_new_resolver("by_time", _by_time, replace=True)
OmegaConf.register_new_resolver("by_own_time", _by_own_time, replace=True)
OmegaConf.register_new_resolver("by_device", _by_device, replace=True)


# --- Composition ---------------------------------------------------------------------------------


def compose(overrides: Sequence[str], source: Source | None = None) -> DictConfig:
    """Compose the config of one run as Hydra does.

    Raises:
        UserError: an override or a file that Hydra refuses, in one line that says what to write.
    """
    cfg = _composed(overrides, source or Source(), RunMode.RUN)
    return _without_hydra(cfg)


def is_sweep(overrides: Sequence[str], source: Source, multirun: bool) -> bool:
    """Tell whether Hydra will sweep: by its flag or by ``hydra.mode``.

    Raises:
        UserError: an override that cannot be read.
    """
    if multirun:
        return True
    mode = _composed(_first_job(overrides, source), source, RunMode.MULTIRUN).hydra.mode
    return mode == RunMode.MULTIRUN


def jobs(overrides: Sequence[str], source: Source) -> Iterator[DictConfig]:
    """Compose the configs of a sweep; of a very large one as many as hold each value once.

    Another sweeper than Hydra's own has a syntax of its own: then the config of the first values.

    Raises:
        UserError: as ``compose``.
    """
    swept = _swept_by_preset(overrides, source)
    if swept is None:
        yield compose(_first_job(overrides, source), source)
        return
    for job in _covering(_combinations([*swept, *overrides], source)):
        yield compose(job, source)


def planned(overrides: Sequence[str], source: Source) -> list[list[str]]:
    """List the overrides of all jobs of a sweep, by number; none where another sweeper chooses."""
    swept = _swept_by_preset(overrides, source)
    if swept is None:
        return []
    own = [t for t in (*swept, *overrides) if not _parsed(t).key_or_group.startswith("hydra")]
    return _combinations(own, source)


def _swept_by_preset(overrides: Sequence[str], source: Source) -> list[str] | None:
    """List what hydra.sweeper.params sweeps; None for another sweeper than Hydra's own."""
    first = _first_job(overrides, source)
    sweeper = _composed(first, source, RunMode.MULTIRUN).hydra.sweeper
    if not sweeper._target_.endswith(".BasicSweeper"):
        return None
    return [f"{key}={value}" for key, value in (sweeper.params or {}).items()]


def sweep_dir(overrides: Sequence[str], source: Source) -> Path:
    """Return the one folder of a whole sweep, as ``hydra.sweep.dir`` says.

    Raises:
        UserError: it depends on the job.
    """
    first = _first_job(overrides, source)
    try:
        return Path(_composed(first, source, RunMode.MULTIRUN).hydra.sweep.dir).expanduser()
    except OmegaConfBaseException as error:
        raise UserError(
            f"hydra.sweep.dir: {one_line(error)}; a sweep has one folder: put what "
            "differs from job to job into hydra.sweep.subdir"
        ) from None


def with_sweep_dir(overrides: Sequence[str], folder: Path) -> list[str]:
    """Return the overrides with this folder as that of the sweep."""
    kept = [text for text in overrides if _parsed(text).key_or_group != "hydra.sweep.dir"]
    path = str(folder)
    if not re.fullmatch(r"[\w./-]+", path):
        path = "'" + path.replace("'", "\\'") + "'"
    return [*kept, f"hydra.sweep.dir={path}"]


def for_hydra(overrides: Sequence[str], source: Source) -> list[str]:
    """Write the overrides of a sweep so that Hydra takes them.

    Hydra applies what is not swept to the presets that are the default, which need not have the
    key: ``scene=lego,chair scene.downscale=2``. A choice of one value is left to the jobs.
    """
    swept = {o.key_or_group for text in overrides if (o := _parsed(text)).is_sweep_override()}
    with _hydra(source) as hydra:
        groups = {key for key in swept if _options(hydra, key)}
    return [_left_to_jobs(text, groups) for text in overrides]


def _left_to_jobs(text: str, swept_groups: set[str]) -> str:
    override = _parsed(text)
    group, dot, _ = override.key_or_group.partition(".")
    if override.is_sweep_override() or override.is_delete() or not dot or group == "hydra":
        return text
    if group not in swept_groups and "experiment" not in swept_groups:
        return text
    choice = f"{override.get_key_element()}=choice({text.partition('=')[2]})"
    try:
        same = [str(override.value())] == list(map(str, _parsed(choice).sweep_iterator()))
    except (UserError, HydraException):
        same = False
    return choice if same else text


def _first_job(overrides: Sequence[str], source: Source) -> list[str]:
    """Give every swept key its first value: other overrides may be of keys that only it has."""
    first = []
    for text in overrides:
        if not _parsed(text).is_sweep_override():
            first.append(text)
            continue
        with _hydra(source) as hydra:  # which lists the presets that glob(...) means
            parser = OverridesParser.create(config_loader=hydra.config_loader)
            (override,) = parser.parse_overrides([text])
        if override.is_discrete_sweep():
            value = next(override.sweep_string_iterator(), None)
            if value is None:
                raise UserError(f"{text}: is no value at all; nerftrain --help lists the presets")
            first.append(f"{override.get_key_element()}={value}")
    return first


def _combinations(overrides: Sequence[str], source: Source) -> list[list[str]]:
    with _hydra(source) as hydra:
        parser = OverridesParser.create(config_loader=hydra.config_loader)
        parsed = parser.parse_overrides(list(overrides))
        try:
            (combinations,) = BasicSweeper.split_arguments(parsed, None)
        except HydraException as error:  # such as an interval, which another sweeper may take
            raise UserError(one_line(error)) from None
    return combinations


def _covering(combinations: list[list[str]]) -> list[list[str]]:
    """Take all jobs of a sweep, or of a very large one as many as hold each value once."""
    if len(combinations) <= _MOST_JOBS_CHECKED:
        return combinations
    seen: set[str] = set()
    covering = []
    for job in combinations:
        if not seen.issuperset(job):
            covering.append(job)
            seen.update(job)
    return covering


@contextmanager
def _hydra(source: Source) -> Iterator[Hydra]:
    version.setbase(VERSION_BASE)
    search_path = create_config_search_path(str(source.main))
    if source.extra is not None:
        check_reach(Path(source.extra))
        if not Path(source.extra).is_dir():
            raise UserError(f"--config-dir {source.extra}: there is no such folder")
        extra = f"file://{Path(source.extra).absolute()}"
        search_path.prepend("command-line", extra, SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("nerftrain", search_path)
    finally:
        GlobalHydra.instance().clear()


def _composed(overrides: Sequence[str], source: Source, mode: RunMode) -> DictConfig:
    for text in overrides:
        _parsed(text)
    with _hydra(source) as hydra:
        try:
            return _load(hydra, overrides, source, mode)
        except Exception as error:  # YAML, OmegaConf, Hydra and bare ValueErrors: all from input
            for text in overrides:
                if problem := _explain(_parsed(text), hydra, overrides, source):
                    raise UserError(problem) from None
            raise UserError(one_line(error)) from error


def _load(hydra: Hydra, overrides: Sequence[str], source: Source, mode: RunMode) -> DictConfig:
    return hydra.compose_config(
        config_name=source.name,
        overrides=list(overrides),
        run_mode=mode,
        with_log_configuration=False,
    )


def _without_hydra(cfg: DictConfig) -> DictConfig:
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    return cfg


# --- What is wrong with an override --------------------------------------------------------------


def one_line(error: BaseException) -> str:
    """Write an error of Hydra or OmegaConf, and what caused it, on one line without its advice."""
    text = str(error).partition("Config search path:")[0] or str(
        error.__cause__ or type(error).__name__
    )
    if isinstance(error.__cause__, OmegaConfBaseException) and str(error):
        text += f" ({error.__cause__})"
    lines = [
        line for line in text.splitlines() if "hydra.cc" not in line and "full_key" not in line
    ]
    return " ".join(" ".join(lines).split())


def interpolation_mistake(error: BaseException, cfg: DictConfig) -> str | None:
    """Say which key is to blame for an interpolation that failed, where it is another's value.

    None where it is the interpolation itself.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    for group in cfg:
        hints = OmegaConf.select(
            cfg, f"{group}.hints", default={}, throw_on_resolution_failure=False
        )
        if not isinstance(hints, Mapping | DictConfig):
            return (
                f"{group}.hints={schema.shown(hints)}: must be a mapping, which other keys take "
                f"their values from; leave it out, or give {group}.hints.KEY=VALUE"
            )
    return None


# What Hydra's own packages bring, and any of them may be installed beside.
_PLUGINS = {
    "hydra/launcher=joblib": "hydra-joblib-launcher",
    "hydra/launcher=ray": "hydra-ray-launcher",
    "hydra/launcher=ray_aws": "hydra-ray-launcher",
    "hydra/launcher=rq": "hydra-rq-launcher",
    "hydra/launcher=submitit_local": "hydra-submitit-launcher",
    "hydra/launcher=submitit_slurm": "hydra-submitit-launcher",
    "hydra/sweeper=ax": "hydra-ax-sweeper",
    "hydra/sweeper=nevergrad": "hydra-nevergrad-sweeper",
    "hydra/sweeper=optuna": "hydra-optuna-sweeper",
}


def _parsed(text: str) -> Override:
    key, equals, value = text.partition("=")
    try:
        if not key:
            raise HydraException
        return OverridesParser.create().parse_override(text)
    except HydraException:
        if not equals:
            raise UserError(
                f"{text}: options are written key=value; nerftrain --help lists them"
            ) from None
        raise UserError(
            f"{text}: cannot be read; put the value in quotes, for the shell too: "
            f"'{key}=\"{value}\"'"
        ) from None


def _explain(
    override: Override, hydra: Hydra, overrides: Sequence[str], source: Source
) -> str | None:
    """Say in one line what is wrong with an override and what would be right; None: nothing."""
    text, key = override.input_line or "", override.key_or_group
    if override.is_delete():
        return None
    options = _options(hydra, key)
    for value in _choices(override) if options else []:
        if value not in options:
            if plugin := _PLUGINS.get(f"{key}={value}"):
                return f"{key}={value}: it comes with pip install {plugin}"
            rest = _meant_preset(str(value), key, options)
            return f"{key}={schema.shown(value)}: no such {key.rpartition('/')[2]}; {rest}"
    if override.is_sweep_override():
        listed = "" if options else f", or write {key}=[...] for one list"
        return f"{text}: several values are a sweep: add -m{listed}"
    known = _known_keys(hydra, overrides, source)
    if override.is_add() and key in known:
        return f"{text}: it is there already: write {text.lstrip('+')}"
    if override.is_add() or override.is_force_add() or key in known:
        return None
    return _explain_key(key, text, known)


def _meant_preset(value: str, group: str, options: Sequence[str]) -> str:
    """Say which preset was meant, in a folder of presets too: ``hook`` for ``dnerf/hook``."""
    names: dict[str, list[str]] = {}
    for option in options:
        names.setdefault(option.rpartition("/")[2], []).append(option)
    within = [option for option in options if option.startswith(f"{value}/")]
    if within:
        return f"there is {', '.join(within)}"
    whole = difflib.get_close_matches(value, options, n=1, cutoff=0.75)
    last = difflib.get_close_matches(value.rpartition("/")[2], names, n=1)
    meant = whole or (names[last[0]] if last else [])
    if meant:
        return f"did you mean {' or '.join(f'{group}={option}' for option in meant)}?"
    return schema.suggestion(value, options, f"{group}=")


def _choices(override: Override) -> list[Any]:
    if override.is_sweep_override():
        listed = override.is_discrete_sweep() and not isinstance(override.value(), Glob)
        return list(override.sweep_string_iterator()) if listed else []
    value = override.value()
    return value if isinstance(value, list) else [value]


def _explain_key(key: str, text: str, known: Mapping[str, Any]) -> str:
    parent, _, last = key.rpartition(".")
    holder = known.get(parent)
    of_hydra = key.startswith("hydra")
    if isinstance(holder, DictConfig) and not of_hydra and "_target_" not in holder:
        return f"{key}: a new entry of {parent} is added by +{text}"
    # Only keys of the group that was named can be meant, where it was named rightly.
    group = key.partition(".")[0] + "."
    related = [n for n in known if n.startswith(group) and not n.endswith("._target_")]
    names = related or [name for name in known if name.startswith("hydra") == of_hydra]
    return f"{key}: no such key; {_meant(key, parent, last, names)}"


def _meant(key: str, parent: str, last: str, names: Sequence[str]) -> str:
    siblings = [name for name in names if name.rpartition(".")[0] == parent]
    # `steps=3` for `trainer.steps=3`, `sampler.occ` for `sampler.grid.occ_thre`.
    same = [name for name in names if name.rpartition(".")[2] == last]
    begun = [name for name in names if name.rpartition(".")[2].startswith(last)]
    close = (
        difflib.get_close_matches(key, siblings, n=1, cutoff=0.75)
        or same
        or difflib.get_close_matches(key, names, n=1, cutoff=0.75)
        or begun
    )
    if close:
        return f"did you mean {' or '.join(close)}?"
    depth = min(name.count(".") for name in names)
    return f"there is {', '.join(siblings or [n for n in names if n.count('.') == depth])}"


def _known_keys(hydra: Hydra, overrides: Sequence[str], source: Source) -> dict[str, Any]:
    """Map all dotted keys of the chosen presets to their values, and all groups to None."""
    choices = [text for text in overrides if _options(hydra, _parsed(text).key_or_group)]
    try:
        cfg = _load(hydra, choices, source, RunMode.MULTIRUN)
    except Exception:  # the choices themselves are wrong: the defaults tell enough
        cfg = _load(hydra, [], Source(), RunMode.MULTIRUN)
    return {**dict(_walk(cfg)), **dict.fromkeys(cfg.hydra.runtime.choices)}


def _walk(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key in node:
        value = node._get_node(key)
        yield f"{prefix}{key}", value
        if isinstance(value, DictConfig) and not value._is_none():
            yield from _walk(value, f"{prefix}{key}.")


def _options(hydra: Hydra, group: str) -> list[str]:
    """List a group's presets, those in folders as ``folder/preset``."""
    loader = hydra.config_loader
    names = list(loader.get_group_options(group, ObjectType.CONFIG)) if group else []
    for folder in loader.get_group_options(group, ObjectType.GROUP) if group else []:
        names += [f"{folder}/{name}" for name in _options(hydra, f"{group}/{folder}")]
    return names


# --- Overrides of a run's own config -------------------------------------------------------------


def apply_override(cfg: DictConfig, text: str, fixed: Sequence[str]) -> None:
    """Apply ``key=value`` to a config that was composed before.

    Args:
        cfg: changed in place.
        text: one override of the command line.
        fixed: keys that stay as they are; only keys in them may change.

    Raises:
        UserError: not a plain ``key=value`` of a key that the config has.
    """
    override = _parsed(text)
    key = override.key_or_group
    known = dict(_walk(cfg))
    if override.is_add() or override.is_force_add() or override.is_delete():
        raise UserError(f"{text}: a run takes key=value of keys that it has")
    if override.is_sweep_override():
        raise UserError(f"{text}: a run takes one value; a sweep starts new runs: nerftrain -m")
    if key not in known:
        raise UserError(_explain_key(key, text, known))
    if key in fixed:
        raise UserError(f"{text}: would make another run: nerftrain {text}")
    OmegaConf.update(cfg, key, override.value())
