"""A run folder: its config as JSON, its starts, and who may go on with it.

config.json         the config, agent_module naming the module of its agent
starts.jsonl        one line per start: the time, the command, the versions
metrics.*, evaluations.jsonl, checkpoints/    written by jdql.runtime
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import platform
import sys
import time
import typing
from importlib import metadata
from pathlib import Path
from typing import Any

from jdql.config import Config

RUN_FILE = "config.json"  # what makes a folder a run
STARTS_FILE = "starts.jsonl"
PACKAGES = ("jdql", "jax", "flax", "optax", "gymnasium", "mujoco", "minari", "numpy")


def is_run(folder: str | Path) -> bool:
    """Whether a folder holds a run."""
    return (Path(folder) / RUN_FILE).is_file()


def agent_settings(module: str) -> type:
    """The settings dataclass of an agent's module."""
    try:
        return importlib.import_module(module).Config
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"agent {module!r} cannot be used: {error}") from error


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
    agent = _from_json(values.pop("agent", {}), agent_settings(module), "agent.")
    return _from_json({**values, "agent": agent}, Config)


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
    hints = typing.get_type_hints(hint)
    for name in value:
        if name not in hints:
            raise ValueError(f"this version of jdql knows no setting {path}{name}")
    read = {n: _from_json(v, hints[n], f"{path}{n}.") for n, v in value.items()}
    return hint(**read)


def load(folder: str | Path) -> Config:
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


def save(config: Config, folder: str | Path) -> None:
    """Writes config.json, whole or not at all."""
    path = Path(folder) / RUN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{RUN_FILE}.tmp")
    temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n")
    temporary.replace(path)


def choose(config: Config, asked: str = "") -> tuple[Path | None, bool]:
    """Which folder a run goes to, and whether it goes on with what is there.

    Args:
      config: the run.
      asked: what was given as `--config`; a run folder is resumed.

    Returns:
      The folder, or None for a new one under runs/; and whether to resume.

    Raises:
      ValueError: the folder holds a run that this command would change.
    """
    if not config.run.dir:
        return None, False
    folder = Path(config.run.dir)
    if not is_run(folder):
        return folder, False
    stored = load(folder)
    if is_run(asked) and folder.resolve() == Path(asked).resolve():
        changed = _changed(stored, config, free=("train", "eval", "run"))
        if changed:
            raise ValueError(
                f"a resumed run keeps its {', '.join(changed)}: to change that, start "
                "another one with --config.run.dir=FOLDER"
            )
    elif _changed(stored, config, free=("run",)):
        raise ValueError(
            f"{folder} holds a run that was started otherwise: resume it with "
            f"--config={folder}, or give another --config.run.dir"
        )
    return folder, True


def _changed(stored: Config, config: Config, free: tuple[str, ...]) -> list[str]:
    """The settings that differ, by dotted name; the sections in `free` may."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            nested = isinstance(value, dict)
            path = prefix + name
            found |= flat(value, f"{path}.") if nested else {path: value}
        return found

    # Where data is looked for may change; the launcher checks which data it found.
    before, after = (
        {k: v for k, v in flat(to_dict(c)).items() if k.split(".")[0] not in free}
        for c in (stored, config)
    )
    names = [*before, *(name for name in after if name not in before)]
    return [
        name
        for name in names
        if before.get(name) != after.get(name) and name != "data.source"
    ]


def check_data(folder: Path, dataset: str) -> None:
    """Refuses to go on with other data than a run was trained on so far.

    Raises:
      ValueError: the dataset is another one.
    """
    from jdql.runtime import checkpoint

    checkpoints = folder / "checkpoints"
    if not checkpoint.steps(checkpoints):
        return
    before = checkpoint.metadata(checkpoints)["dataset"]
    if before != dataset:
        raise ValueError(
            f"{folder} was trained on {before}, but what is found now is {dataset}: "
            "--config.data.source=local takes jdql's own data, =minari takes Minari's"
        )


def claim(name: str) -> Path:
    """Makes a new folder runs/NAME, or runs/NAME-2, ... if others have it."""
    number = 1
    while True:
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def record_start(folder: Path) -> None:
    """Adds the command and the versions to the folder's list of starts."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    row = {"time": time.time(), "argv": sys.argv, "versions": versions}
    with (folder / STARTS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
