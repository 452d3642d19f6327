"""Read a config node against the signature of the class or function that it names.

A node is a mapping with ``_target_``, a dotted name. The target's positional parameters are the
keys that the node has to hold and their annotations the types; its keyword-only parameters are
objects that the program offers, and it takes those that it names. Plain Python in and out.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nerftrain.errors import UserError

TRUSTED = ("nerftrain.", "torch.optim.")  # what a config may name; `trusted=[...]` adds to it

_MISSING = "???"  # OmegaConf's mark of a value that the user has to give
# Keys of which inf says something: no limit, never, no error that is beyond. Elsewhere it is a slip
# that would turn weights, distances or sizes into nonsense.
_MAY_BE_INFINITE = ("max_seconds", "evaluate_seconds", "checkpoint_seconds", "huber_delta")
_MOST = 2**64  # no number of anything is larger, and none that is fits what counts on a device
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class Plan:
    """A checked node: what to call with which values; nested nodes are plans themselves."""

    where: str  # the node's key in the config
    target: Callable[..., Any]
    values: dict[str, Any]

    def build(self, **runtime: Any) -> Any:
        """Call the target with the config's values and those ``runtime`` objects that it names.

        Raises:
            UserError: raised by the target; the node's key is put before a parameter's name.
        """
        values = {key: _built(value) for key, value in self.values.items()}
        taken = {name: value for name, value in runtime.items() if _takes(self.target, name)}
        try:
            return self.target(**values, **taken)
        except UserError as error:
            raise UserError(self._located(str(error))) from None

    def check_values(self) -> None:
        """Build what is nothing but values (dataclasses), so that their ranges are checked.

        Raises:
            UserError: a value is out of its range.
        """
        for plan in _plans(list(self.values.values())):
            plan.check_values()
        if not _runtime_names(self.target) and is_dataclass(self.target):
            self.build()

    def _located(self, message: str) -> str:
        name = re.match(r"(\w+)[=:.\[]", message)
        return f"{self.where}.{message}" if name and name[1] in self.values else message


def read(
    node: Mapping[str, Any],
    where: str,
    runtime: Sequence[str] = (),
    trusted: Sequence[str] = TRUSTED,
) -> Plan:
    """Check the node at the key ``where`` and all nodes in it, and convert their values.

    Args:
        node: plain Python, interpolations resolved.
        where: the node's key, for messages.
        runtime: names of the objects that the program offers to the target.
        trusted: prefixes of names that a node may hold in ``_target_``.

    Raises:
        UserError: an unknown or missing key, a wrong type or choice, an unfit target.
    """
    target = _locate(node.get("_target_"), where, trusted)
    parameters = _parameters(target, runtime)
    _check_runtime(target, where, runtime)
    values: dict[str, Any] = {}
    for key, value in node.items():
        # `name` labels the run's folder and its report, `hints` are for other nodes to interpolate;
        # only targets that ask for them get them.
        if key == "_target_" or (key in ("name", "hints") and key not in parameters):
            continue
        free = _takes_any(target) and key not in (*runtime, *_runtime_names(target))
        if key not in parameters and not free:
            rest = suggestion(key, parameters, f"{where}.")
            raise UserError(f"{where}.{key}: no such key; {rest}")
        values[key] = convert(value, parameters.get(key, Any), f"{where}.{key}", trusted)
    _check_complete(target, where, values, runtime)
    return Plan(where, target, values)


def convert(value: Any, hint: Any, where: str, trusted: Sequence[str] = TRUSTED) -> Any:
    """Turn a config value into the annotated type ``hint``: an int to a float, a text to a path.

    Raises:
        UserError: the value at the key ``where`` does not fit.
    """
    origin, args = get_origin(hint), get_args(hint)
    if value == _MISSING:
        raise UserError(f"{where} is not set: add {where}=VALUE")
    if isinstance(value, Mapping) and "_target_" in value:
        return _nested(value, hint, where, trusted)
    if origin is Literal:
        return _choice(value, args, where)
    if origin in (Union, UnionType):
        return _either(value, args, where, trusted)
    kind = origin or hint
    if kind in (Any, object):
        _check_finite(value, where)
        return value
    if kind in (list, tuple, Sequence, Iterable):
        return _sequence(value, kind, args, where, trusted)
    if kind in (dict, Mapping):
        return _mapping(value, args, where, trusted)
    return _scalar(value, kind, where)


def shown(value: Any) -> str:
    """Write a value on one line as on the command line, shortened to 60 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def suggestion(word: str, names: Iterable[str], prefix: str = "") -> str:
    """Name what was probably meant, or all there is: the second half of an error line."""
    names = list(names)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"there is {', '.join(names)}" if names else "there is none"


# --- The kinds of values -------------------------------------------------------------------------


def _nested(value: Mapping[str, Any], hint: Any, where: str, trusted: Sequence[str]) -> Plan:
    plan = read(value, where, (), trusted)
    classes = [kind for kind in (hint, *get_args(hint)) if inspect.isclass(kind)]
    if classes and inspect.isclass(plan.target) and not issubclass(plan.target, tuple(classes)):
        names = " or ".join(kind.__name__ for kind in classes if kind is not NoneType)
        raise UserError(f"{where}._target_={value['_target_']}: must be {names} or a kind of it")
    return plan


def _choice(value: Any, choices: Sequence[Any], where: str) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice):  # True == 1
            return value
    close = difflib.get_close_matches(str(value), map(str, choices), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"{where}={shown(value)}: choose one of {', '.join(map(shown, choices))}{hint}")


def _either(value: Any, hints: Sequence[Any], where: str, trusted: Sequence[str]) -> Any:
    if value is None and NoneType in hints:
        return None
    errors = []
    for hint in hints:
        if hint is not NoneType:
            try:
                return convert(value, hint, where, trusted)
            except UserError as error:
                errors.append(str(error))
    null = " or null" if NoneType in hints and "choose one of" not in errors[0] else ""
    raise UserError(errors[0] + null)


def _sequence(
    value: Any, kind: Any, hints: Sequence[Any], where: str, trusted: Sequence[str]
) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where}={shown(value)}: must be a list: {where}=[...]")
    fixed = kind is tuple and Ellipsis not in hints and bool(hints)
    if fixed and len(value) != len(hints):
        raise UserError(f"{where}={shown(value)}: must have {len(hints)} values")
    each = hints if fixed else [hints[0] if hints else Any] * len(value)
    items = [
        convert(v, h, f"{where}[{i}]", trusted)
        for i, (v, h) in enumerate(zip(value, each, strict=True))
    ]
    return tuple(items) if kind is tuple else items


def _mapping(
    value: Any, hints: Sequence[Any], where: str, trusted: Sequence[str]
) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}={shown(value)}: must be a mapping: {where}={{KEY: VALUE}}")
    key_hint, value_hint = hints or (Any, Any)
    return {
        convert(key, key_hint, f"{where} key", trusted): convert(
            item, value_hint, f"{where}.{key}", trusted
        )
        for key, item in value.items()
    }


def _scalar(value: Any, kind: Any, where: str) -> Any:
    if kind is NoneType:
        if value is not None:
            raise UserError(f"{where}={shown(value)}: must be null")
        return None
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    # A bool is an int to Python, never to a user.
    kinds = (int, float) if kind is float else kind
    fits = isinstance(value, kinds) and not (isinstance(value, bool) and kind is not bool)
    if not fits:
        raise UserError(f"{where}={shown(value)}: must be {_wanted(value, kind, where)}")
    _check_finite(value, where)
    return float(value) if kind is float else value


def _check_finite(value: Any, where: str) -> None:
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{where}={value}: must be a number")
    endless = where.rpartition(".")[2] in _MAY_BE_INFINITE
    if isinstance(value, float) and math.isinf(value) and not (endless and value > 0):
        raise UserError(f"{where}={value}: must be a finite number")
    if isinstance(value, int) and abs(value) >= _MOST:
        raise UserError(f"{where}={shown(value)}: must be less than 2^64")


def _wanted(value: Any, kind: type, where: str) -> str:
    if kind is int and isinstance(value, float) and value.is_integer():
        return f"a whole number, written {where}={int(value)}"
    if kind in (str, Path) and isinstance(value, (int, float)):
        return f"a text, in quotes for the shell and for the config: '{where}=\"{shown(value)}\"'"
    if kind in _WORDS:
        return _WORDS[kind]
    return "a path" if kind is Path else f"a node with _target_: {kind.__name__}"


# --- Targets and their signatures ----------------------------------------------------------------


def _locate(name: Any, where: str, trusted: Sequence[str]) -> Callable[..., Any]:
    prefixes = tuple(prefix if prefix.endswith(".") else f"{prefix}." for prefix in trusted)
    if not isinstance(name, str):
        raise UserError(f"{where} has no _target_: it must name a class")
    if not name.startswith(prefixes):
        raise UserError(_untrusted(name, where, prefixes))
    target = _import(name, where)
    if not callable(target):
        raise UserError(f"{where}._target_={name}: not a class or a function")
    if lacking := getattr(target, "__abstractmethods__", None):
        methods = ", ".join(sorted(lacking))
        raise UserError(f"{where}._target_={name}: lacks {methods}; name a class that has them")
    # What a trusted module has imported from elsewhere is not thereby trusted.
    if not f"{target.__module__}.".startswith(prefixes):
        raise UserError(_untrusted(f"{target.__module__}.{target.__qualname__}", where, prefixes))
    return target


def _untrusted(name: str, where: str, prefixes: Sequence[str]) -> str:
    own = name.split(".")[0]
    return f"{where}._target_={name}: trusted are {', '.join(prefixes)}; add trusted=[{own}]"


def _import(name: str, where: str) -> Any:
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A missing library that the module imports is another mistake than a misspelt module.
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{where}._target_={name}: {module_name} needs {error.name}; install it with pip"
            ) from error
        raise UserError(f"{where}._target_={name}: there is no module {error.name}") from None
    if not hasattr(module, attribute):
        own = [
            key
            for key, value in vars(module).items()
            if inspect.isclass(value) or inspect.isfunction(value)
        ]
        prefix = f"{where}._target_={module_name}."
        raise UserError(
            f"{where}._target_={name}: no such class; {suggestion(attribute, own, prefix)}"
        )
    return getattr(module, attribute)


@functools.cache
def _signature(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(target).parameters


def _config_names(target: Callable[..., Any]) -> list[str]:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [name for name, parameter in _signature(target).items() if parameter.kind is kind]


def _runtime_names(target: Callable[..., Any]) -> list[str]:
    kind = inspect.Parameter.KEYWORD_ONLY
    return [name for name, parameter in _signature(target).items() if parameter.kind is kind]


def _takes_any(target: Callable[..., Any]) -> bool:
    kinds = [parameter.kind for parameter in _signature(target).values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def _takes(target: Callable[..., Any], name: str) -> bool:
    named = name in _config_names(target) or name in _runtime_names(target)
    return named or _takes_any(target)


def _parameters(target: Callable[..., Any], runtime: Sequence[str]) -> dict[str, Any]:
    """Map the config's parameters to their annotations.

    The program's own parameters are left out: their types may be known to type checkers alone.
    """
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    names = [name for name in _config_names(target) if name not in runtime]
    annotations = {name: _signature(target)[name].annotation for name in names}
    annotated = {
        name: hint for name, hint in annotations.items() if hint is not inspect.Parameter.empty
    }
    scope = vars(sys.modules[function.__module__]) if function.__module__ in sys.modules else {}
    hints = get_type_hints(SimpleNamespace(__annotations__=annotated), globalns=scope)
    return {name: hints.get(name, Any) for name in names}


def _check_runtime(target: Callable[..., Any], where: str, runtime: Sequence[str]) -> None:
    for name in _runtime_names(target):
        required = _signature(target)[name].default is inspect.Parameter.empty
        if required and name not in runtime:
            offered = ", ".join(runtime) or "nothing"
            raise UserError(
                f"{where}: {target.__name__} wants {name}=, but the program offers {offered}"
            )


def _check_complete(
    target: Callable[..., Any], where: str, values: Mapping[str, Any], runtime: Sequence[str]
) -> None:
    for name in _config_names(target):
        required = _signature(target)[name].default is inspect.Parameter.empty
        if required and name not in values and name not in runtime:
            raise UserError(f"{where}.{name} is not set: add ++{where}.{name}=VALUE")


def _built(value: Any) -> Any:
    if isinstance(value, Plan):
        return value.build()
    if isinstance(value, (list, tuple)):
        return type(value)(_built(item) for item in value)
    if isinstance(value, dict):
        return {key: _built(item) for key, item in value.items()}
    return value


def _plans(value: Any) -> list[Plan]:
    if isinstance(value, Plan):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return (
        [plan for item in items for plan in _plans(item)]
        if isinstance(value, (list, tuple, dict))
        else []
    )
