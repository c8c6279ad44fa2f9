"""From `--config=NAME` and its overrides to a `Config`, and from that to JSON and back.

`--config` takes the bare name of a file in experiments/configs, `name:variant` (a
function of experiments/variants.py, or of that file, which wins), a path ending in .py,
or a run folder.  Nothing here imports JAX until a config is built, so a misspelt name
is answered at once.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jdql
from experiments import overrides as overrides_lib
from experiments.overrides import Override, nearest
from jdql.config import Config

CONFIGS = Path(__file__).parent / "configs"
AGENTS = Path(jdql.__file__).parent / "agents"
RUN_FILE = "config.json"  # what makes a folder a run
_NOT_CONFIGS = ("__init__", "common")
_NOT_AGENTS = ("__init__", "base")

Variant = Callable[[Config], Config]


def resolve(name: str, overrides: Iterable[Override] = ()) -> Config:
    """Builds the config that a command line asks for.

    The agent is exchanged first, then the variant is applied, then the other overrides,
    so that `walker2d_medium:smoke --config.agent=diffusion_bc` is small too.

    Args:
      name: what was given as `--config`.
      overrides: from `split_overrides`.

    Returns:
      The config.  From a run folder, `run.dir` is that folder.

    Raises:
      ValueError: an unknown name, variant, field or agent, or a text that does not fit
        the field's type.  The message is one line and names the nearest match.
    """
    overrides = list(overrides)
    config, variant = _load(name)
    for override in overrides:
        if override.path == "agent":
            config = _exchange_agent(config, override.text)
    config = variant(config)
    for override in overrides:
        if override.path != "agent":
            config = overrides_lib.apply(config, override)
    return config


def config_names() -> list[str]:
    """Names of the configs, read from the file names alone."""
    return sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem not in _NOT_CONFIGS)


def agent_names() -> list[str]:
    """Names of the agents, read from the file names alone."""
    return sorted(p.stem for p in AGENTS.glob("*.py") if p.stem not in _NOT_AGENTS)


def is_run(folder: str | Path) -> bool:
    """Whether a folder holds a run."""
    return (Path(folder) / RUN_FILE).is_file()


# Names --------------------------------------------------------------------------------


def _as_it_is(config: Config) -> Config:
    return config


def _load(name: str) -> tuple[Config, Variant]:
    """The config called `name` and the function of its variant, not yet applied."""
    if is_run(name):
        return load_run(name), _as_it_is
    stem, _, variant = name.partition(":")
    if stem.endswith(".py"):
        module = _module_at(Path(stem))
    elif stem in config_names():
        module = importlib.import_module(f"experiments.configs.{stem}")
    elif "/" in stem or Path(stem).is_dir():
        raise ValueError(
            f"--config={name}: there is no run there ({RUN_FILE} is missing)"
        )
    else:
        raise ValueError(
            f"--config={name}: there is no config {stem!r}; the nearest is "
            f"{nearest(stem, config_names())!r} (--list shows all)"
        )
    config = module.get_config()
    return config, _variant(module, variant) if variant else _as_it_is


def _module_at(path: Path) -> types.ModuleType:
    """Imports the file at `path`, which must define get_config."""
    if not path.is_file():
        raise ValueError(f"--config={path}: there is no such file")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config={path}: Python cannot import this file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in the file look themselves up
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config={path}: the file defines no get_config() -> Config")
    return module


def _variant(module: types.ModuleType, name: str) -> Variant:
    """The function `name` of the config's own file, or else of variants.py."""
    from experiments import variants

    known = {**_functions(variants), **_functions(module)}
    known.pop("get_config", None)
    if name not in known:
        raise ValueError(
            f"there is no variant {name!r}; the nearest is {nearest(name, known)!r} "
            f"(there are {', '.join(sorted(known))})"
        )

    def apply(config: Config) -> Config:
        changed = known[name](config)
        return dataclasses.replace(changed, name=f"{config.name}-{name}")

    return apply


def _functions(module: types.ModuleType) -> dict[str, Callable[..., Any]]:
    """The public functions that a module itself defines."""
    found = inspect.getmembers(module, inspect.isfunction)
    here = ((n, f) for n, f in found if f.__module__ == module.__name__)
    return {name: function for name, function in here if not name.startswith("_")}


def _exchange_agent(config: Config, name: str | None) -> Config:
    """Puts the default settings of another agent in; a dotted name is any module."""
    name = name or ""
    if "." not in name and name not in agent_names():
        raise ValueError(
            f"--config.agent={name}: there is no agent {name!r}; the nearest is "
            f"{nearest(name, agent_names())!r} (its settings are --config.agent.FIELD)"
        )
    module = name if "." in name else f"jdql.agents.{name}"
    agent = _agent_config(module)()
    label = f"{config.name}-{name.rpartition('.')[2]}"
    return dataclasses.replace(config, agent=agent, name=label)


def _agent_config(module: str) -> type:
    """The settings dataclass of an agent's module."""
    try:
        return importlib.import_module(module).Config
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"agent {module!r} cannot be used: {error}") from error


# JSON ---------------------------------------------------------------------------------


def to_dict(config: Config) -> dict[str, Any]:
    """The config as JSON-ready values; `agent_module` names the agent's module."""
    values = dataclasses.asdict(config)
    return {"agent_module": type(config.agent).__module__, **values}


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`; a field that is not there keeps its default.

    Raises:
      ValueError: a field that this version does not know, or no such agent.
    """
    values = dict(values)
    module = values.pop("agent_module", None)
    if not isinstance(module, str):
        raise ValueError("a stored config must name its agent_module")
    agent = _from_json(values.pop("agent", {}), _agent_config(module), "agent.")
    return _from_json({**values, "agent": agent}, Config)


def _from_json(value: Any, hint: Any, path: str = "") -> Any:
    """Rebuilds dataclasses and tuples, which JSON holds as objects and lists."""
    if isinstance(value, list):
        options = (hint, *typing.get_args(hint))  # the arms of `tuple[...] | None`
        shapes = [h for h in options if typing.get_origin(h) is tuple]
        item = typing.get_args(shapes[0])[0] if shapes else Any
        parts = [_from_json(part, item) for part in value]
        return tuple(parts) if shapes else parts
    if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
        return value
    hints = typing.get_type_hints(hint)
    for name in value:
        if name not in hints:
            raise ValueError(f"this version of jdql knows no setting {path}{name}")
    read = {n: _from_json(v, hints[n], f"{path}{n}.") for n, v in value.items()}
    return hint(**read)


def load_run(folder: str | Path) -> Config:
    """The config of a run folder, with `run.dir` set to that folder.

    Raises:
      ValueError: the folder holds no run, or its config.json cannot be read.
    """
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: there is no {RUN_FILE} in it")
    try:
        config = from_dict(json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    run = dataclasses.replace(config.run, dir=str(folder))
    return dataclasses.replace(config, run=run)


def save_run(config: Config, folder: str | Path) -> None:
    """Writes config.json, whole or not at all."""
    path = Path(folder) / RUN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{RUN_FILE}.tmp")
    temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n")
    temporary.replace(path)
