"""From `--config=NAME` and its overrides to a `Config`.

`--config` takes the words of experiments/launch/names.py, such as `walker2d_medium`,
`edp` or `edp:hopper_medium:quick`; a path ending in .py that defines `get_config()`,
perhaps with variants behind it; or a run folder.  Nothing here imports JAX until a
config is built, so a misspelt name is answered at once.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from experiments.configs.tasks import TASKS
from experiments.launch import names
from experiments.launch import overrides as overrides_lib
from experiments.launch.overrides import Override, nearest
from jdql.config import Config
from jdql.runtime import stored


class Variant(NamedTuple):
    """A change of configs, and the name of the system whose settings it changes."""

    name: str
    apply: Callable[[Config], Config]
    system: str = ""  # "": it fits every agent


def resolve(name: str, overrides: Iterable[Override] = ()) -> Config:
    """Builds the config that a command line asks for.

    The agent is exchanged first, then the variants are applied in order, then the other
    overrides, so that `walker2d_medium:smoke --config.agent=diffusion_bc` is small too.

    Args:
      name: what was given as `--config`.
      overrides: from `split_overrides`.

    Returns:
      The config.  Its name is `[SYSTEM-]TASK[-AGENT][-VARIANT...]`, without the system
      where that is Diffusion-QL.  From a run folder, `run.dir` is that folder.

    Raises:
      ValueError: an unknown name, variant, field or agent, or a text that does not fit
        the field's type.  The message is one line and names the nearest match.
    """
    overrides = list(overrides)
    config, variants = _load(name)
    for override in overrides:
        if override.path == "agent":
            config = _exchange_agent(config, override.text, variants)
    for variant in variants:
        changed = variant.apply(config)
        config = dataclasses.replace(changed, name=f"{config.name}-{variant.name}")
    for override in overrides:
        if override.path != "agent":
            config = overrides_lib.apply(config, override)
    return config


# Names --------------------------------------------------------------------------------


def _load(name: str) -> tuple[Config, list[Variant]]:
    """The config called `name`, and its variants, not yet applied."""
    if stored.is_run(name):
        return stored.load(name), []
    first, *rest = name.split(":")
    if first.endswith(".py"):
        return _from_file(Path(first), rest)
    if "/" in name or Path(name).is_dir():
        raise ValueError(
            f"--config={name}: there is no run there ({stored.FILE} is missing)"
        )
    return _from_words(names.split(name))


def _from_words(words: names.Words) -> tuple[Config, list[Variant]]:
    """A system's settings for a task."""
    system = words.system or names.DEFAULT_SYSTEM
    task = words.task or names.DEFAULT_TASK
    module = importlib.import_module(f"experiments.configs.{system}")
    label = task if system == names.DEFAULT_SYSTEM else f"{system}-{task}"
    config = dataclasses.replace(module.settings(TASKS[task]), name=label)
    files = names.variant_files(system, task)
    return config, [_variant(word, files, system) for word in words.variants]


def _variant(word: str, files: list[Path], system: str = "") -> Variant:
    """The variant called `word`, of the first of the files that defines it."""
    path = next(path for path in files if word in names.variants(path))
    package = "launch" if path == names.GENERAL else "configs"
    module = importlib.import_module(f"experiments.{package}.{path.stem}")
    owner = system if path.stem == system else ""
    return Variant(word, getattr(module, word), owner)


# Files of one's own -------------------------------------------------------------------


def _from_file(path: Path, words: list[str]) -> tuple[Config, list[Variant]]:
    """The config of a file, whose own functions come before the variants of all."""
    module = _module_at(path)
    own, general = names.variants(path), names.variants(names.GENERAL)
    known = [*own, *(name for name in general if name not in own)]
    for word in words:
        if word not in known:
            raise ValueError(
                f"{path} has no variant {word!r}; the nearest is "
                f"{nearest(word, known)!r} (there are {', '.join(known)})"
            )
    return module.get_config(), [
        Variant(word, getattr(module, word))
        if word in own
        else _variant(word, [names.GENERAL])
        for word in words
    ]


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


# Agents -------------------------------------------------------------------------------


def _importable(name: str) -> bool:
    return name.isidentifier() and importlib.util.find_spec(name) is not None


def _exchange_agent(
    config: Config, name: str | None, variants: list[Variant]
) -> Config:
    """Puts the default settings of another agent in; other names are any module's.

    The agent that is there already keeps the settings that it has for the task.
    """
    name, known = name or "", names.agent_names()
    own = name in known
    if not own and "." not in name and not _importable(name):
        raise ValueError(
            f"--config.agent={name}: there is no agent {name!r}; the nearest is "
            f"{nearest(name, known)!r} (its settings are --config.agent.FIELD)"
        )
    module = f"jdql.agents.{name}" if own else name
    settings = stored.agent_settings(module)
    if isinstance(config.agent, settings):
        return config
    for variant in variants:
        if variant.system:
            raise ValueError(
                f"--config.agent={name}: the variant {variant.name!r} changes settings "
                f"of {variant.system}; drop one of the two"
            )
    label = f"{config.name}-{name.rpartition('.')[2]}"
    return dataclasses.replace(config, agent=settings(), name=label)
