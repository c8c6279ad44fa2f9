"""From `--config=NAME` and its overrides to a `Config`.

`--config` takes the bare name of a file in experiments/configs, `name:variant` (a
function of experiments/launch/variants.py, or of that file, which wins), `system:task`
(two files, of which the first defines `adapt(task) -> Config`), a path ending in .py,
or a run folder.  Nothing here imports JAX until a config is built, so a misspelt name
is answered at once.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jdql
from experiments.launch import overrides as overrides_lib
from experiments.launch.overrides import Override, nearest
from jdql.config import Config
from jdql.runtime import stored

CONFIGS = Path(__file__).parents[1] / "configs"
AGENTS = Path(jdql.__file__).parent / "agents"
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


# Names --------------------------------------------------------------------------------


def _as_it_is(config: Config) -> Config:
    return config


def _load(name: str) -> tuple[Config, Variant]:
    """The config called `name` and the function of its variant, not yet applied."""
    if stored.is_run(name):
        return stored.load(name), _as_it_is
    stem, _, variant = name.partition(":")
    if stem.endswith(".py"):
        module = _module_at(Path(stem))
    elif stem in config_names():
        module = importlib.import_module(f"experiments.configs.{stem}")
    elif "/" in stem or Path(stem).is_dir():
        raise ValueError(
            f"--config={name}: there is no run there ({stored.FILE} is missing)"
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
    """The function `name` of the config's own file, or else of variants.py, or a task.

    A task is another config, which the file's `adapt` gives its settings.
    """
    from experiments.launch import variants

    known = {**_functions(variants), **_functions(module)}
    known.pop("get_config", None)
    adapt = known.pop("adapt", None)
    tasks = config_names() if adapt else []
    if adapt and name in tasks:
        task = importlib.import_module(f"experiments.configs.{name}").get_config()
        known[name] = lambda config: adapt(task)
    if name not in known:
        names = [*sorted(known), *tasks]
        raise ValueError(
            f"there is no variant {name!r}; the nearest is {nearest(name, names)!r} "
            f"(there are {', '.join(names)})"
        )

    def apply(config: Config) -> Config:
        return dataclasses.replace(known[name](config), name=f"{config.name}-{name}")

    return apply


def _functions(module: types.ModuleType) -> dict[str, Callable[..., Any]]:
    """The public functions that a module itself defines."""
    found = inspect.getmembers(module, inspect.isfunction)
    here = ((n, f) for n, f in found if f.__module__ == module.__name__)
    return {name: function for name, function in here if not name.startswith("_")}


def _exchange_agent(config: Config, name: str | None) -> Config:
    """Puts the default settings of another agent in; a dotted name is any module.

    The agent that is there already keeps the settings that it has for the task.
    """
    name = name or ""
    if "." not in name and name not in agent_names():
        raise ValueError(
            f"--config.agent={name}: there is no agent {name!r}; the nearest is "
            f"{nearest(name, agent_names())!r} (its settings are --config.agent.FIELD)"
        )
    module = name if "." in name else f"jdql.agents.{name}"
    settings = stored.agent_settings(module)
    if isinstance(config.agent, settings):
        return config
    label = f"{config.name}-{name.rpartition('.')[2]}"
    return dataclasses.replace(config, agent=settings(), name=label)
