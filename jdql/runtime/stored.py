"""The settings of a run as JSON: config.json in its folder.

`agent_module` names the module whose `Config` holds the system's settings.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import typing
from os import PathLike
from pathlib import Path
from typing import Any

from jdql.config import Config

FILE = "config.json"  # what makes a folder a run


def is_run(folder: str | Path) -> bool:
    """Whether a folder holds a run."""
    return (Path(folder) / FILE).is_file()


def agent_settings(module: str) -> type:
    """The settings dataclass of a system's module; raises ValueError without one."""
    try:
        return importlib.import_module(module).Config
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"agent {module!r} cannot be used: {error}") from error


def agent_to_dict(agent: Any) -> dict[str, Any]:
    """The settings of a system as JSON-ready values, with the module that has them."""
    module = type(agent).__module__
    return {"agent_module": module, "agent": dataclasses.asdict(agent)}


def agent_from_dict(values: dict[str, Any]) -> Any:
    """The inverse of `agent_to_dict`; raises ValueError where there is none."""
    module = values.get("agent_module")
    if not isinstance(module, str):
        raise ValueError("a stored config must name its agent_module")
    return _from_json(values.get("agent", {}), agent_settings(module), "agent.")


def to_dict(config: Config) -> dict[str, Any]:
    """The config as JSON-ready values."""
    return {**dataclasses.asdict(config), **agent_to_dict(config.agent)}


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`; a field that is not there keeps its default.

    Raises:
      ValueError: a field that this version does not know, or no such agent.
    """
    agent = agent_from_dict(values)
    others = {n: v for n, v in values.items() if n not in ("agent_module", "agent")}
    return _from_json({**others, "agent": agent}, Config)


def _from_json(value: Any, hint: Any, path: str = "") -> Any:
    """Rebuilds dataclasses and tuples, which JSON holds as objects and lists."""
    if isinstance(value, list):
        options = (hint, *typing.get_args(hint))  # the arms of `tuple[...] | None`
        shapes = [h for h in options if typing.get_origin(h) is tuple]
        items = typing.get_args(shapes[0]) if shapes else (Any, ...)
        if items[-1] is Ellipsis:
            items = items[:1] * len(value)
        parts = [_from_json(p, item) for p, item in zip(value, items, strict=True)]
        return tuple(parts) if shapes else parts
    if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
        return value
    if isinstance(value, hint):
        return value
    hints = typing.get_type_hints(hint)
    for name in value:
        if name not in hints:
            raise ValueError(f"this version of jdql knows no setting {path}{name}")
    read = {n: _from_json(v, hints[n], f"{path}{n}.") for n, v in value.items()}
    return hint(**read)


def load(folder: str | PathLike[str]) -> Config:
    """The config of a run folder, with `run.dir` set to that folder.

    Raises:
      ValueError: the folder holds no run, or its config.json cannot be read.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: there is no {FILE} in it")
    try:
        config = from_dict(json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    run = dataclasses.replace(config.run, dir=str(folder))
    return dataclasses.replace(config, run=run)


def save(config: Config, folder: str | Path) -> None:
    """Writes config.json, whole or not at all."""
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{FILE}.tmp")
    temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n")
    temporary.replace(path)
