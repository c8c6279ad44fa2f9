"""A run folder: its config as JSON, its starts, and who may go on with it.

config.json         the config, agent_module naming the module of its agent
starts.jsonl        one line per start: the time, the command, the versions
metrics.*, evaluations.jsonl, checkpoints/    written by jdql.runtime
"""

from __future__ import annotations

import json
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from jdql.config import Config
from jdql.runtime import stored

STARTS_FILE = "starts.jsonl"
PACKAGES = ("jdql", "jax", "flax", "optax", "gymnasium", "mujoco", "minari", "numpy")


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
    if not stored.is_run(folder):
        return folder, False
    before = stored.load(folder)
    if stored.is_run(asked) and folder.resolve() == Path(asked).resolve():
        changed = _changed(before, config, free=("train", "eval", "run"))
        if changed:
            raise ValueError(
                f"a resumed run keeps its {', '.join(changed)}: to change that, start "
                "another one with --config.run.dir=FOLDER"
            )
    elif _changed(before, config, free=("run",)):
        raise ValueError(
            f"{folder} holds a run that was started otherwise: resume it with "
            f"--config={folder}, or give another --config.run.dir"
        )
    return folder, True


def _changed(before: Config, config: Config, free: tuple[str, ...]) -> list[str]:
    """The settings that differ, by dotted name; the sections in `free` may."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            nested = isinstance(value, dict)
            path = prefix + name
            found |= flat(value, f"{path}.") if nested else {path: value}
        return found

    # Where data is looked for may change; the launcher checks which data it found.
    old, new = (
        {
            k: v
            for k, v in flat(stored.to_dict(c)).items()
            if k.split(".")[0] not in free
        }
        for c in (before, config)
    )
    names = [*old, *(name for name in new if name not in old)]
    return [
        name
        for name in names
        if old.get(name) != new.get(name) and name != "data.source"
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
