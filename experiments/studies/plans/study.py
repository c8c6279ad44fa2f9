"""The pictures of `figures plans`: which runs they are of, trained where missing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from experiments.launch.overrides import Override
from experiments.launch.resolve import resolve
from experiments.studies.ablations import runs
from jdql.config import Config
from jdql.data import pusht
from jdql.runtime import stored

# By part, the system, the task's simulator and the variant for two cores.
PARTS = {
    "maze": ("diffuser", "jdql.envs.pointmaze", "cpu"),
    "pusht": ("diffusion_policy", "jdql.envs.pusht", "cpu"),
    "two_route": ("diffusion_policy", "jdql.envs.two_route", "quick"),
}
MAZE = "pointmaze_umaze"


def config_of(
    part: str,
    task: str | None,
    seeds: Sequence[int],
    folder: Path,
    *,
    full: bool,
    overrides: Sequence[Override] = (),
) -> Config:
    """The run of a part.

    Args:
      part: a key of `PARTS`.
      task: of the maze, `pointmaze_large` for instance; None takes `MAZE`.
      seeds: consecutive.
      folder: of the runs.
      full: the authors' size.
      overrides: of the user.

    Raises:
      ValueError: there is no such task, it is no maze, or an override does not fit.
    """
    system, _, small = PARTS[part]
    name = (task or MAZE) if part == "maze" else part
    config = resolve(f"{system}:{name}" + ("" if full else f":{small}"))
    if part == "maze":
        _module(part).scene_of(config)  # refuses what is no maze
    if part == "two_route":
        config = _module(part).sized(config)
    return runs.placed(runs.sized(config, None, seeds, overrides), folder)


def run(
    parts: Sequence[str],
    trained: Mapping[str, Path],
    task: str | None,
    seeds: Sequence[int],
    out: Path,
    folder: Path,
    *,
    step: str,
    full: bool,
    overrides: Sequence[Override],
    log: runs.Log,
) -> list[Path] | None:
    """Trains what is missing, prints the tables and draws the pictures.

    Args:
      parts: keys of `PARTS`; none takes all whose data is here.
      trained: runs to draw as they are, by part, from `by_part`.
      task: of the maze; see `config_of`.
      seeds: consecutive.
      out: the folder of the pictures.
      folder: of the runs.
      step: "last", "best" or the number of a kept checkpoint.
      full: the authors' size.
      overrides: of the user.
      log: receives what is told.

    Returns:
      The files that were written; None where the user stopped the training.

    Raises:
      ValueError, OSError: as `experiments.run`; or there is no such part.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"--only={part}: the parts are {', '.join(PARTS)}")
    chosen = parts or [p for p in PARTS if p in trained or available(p, log)]
    written: list[Path] = []
    for part in chosen:
        if part not in trained:
            config = config_of(
                part, task, seeds, folder, full=full, overrides=overrides
            )
            if not runs.trained(config, log):
                return None
            where = Path(config.run.dir)
        else:
            where = trained[part]
        written += _module(part).draw(where, step, out, log)
    return written


def by_part(folders: Sequence[str]) -> dict[str, Path]:
    """Which part each run folder is of.

    Raises:
      ValueError: a folder holds no run, or one that no part draws.
    """
    found = {}
    for folder in folders:
        if not stored.is_run(folder):
            raise ValueError(f"--trained={folder}: there is no run there")
        config = stored.load(folder)
        system = type(config.agent).__module__.rpartition(".")[2]
        of = [
            part
            for part, (one, simulator, _) in PARTS.items()
            if (one, simulator) == (system, config.eval.env_module)
        ]
        if not of:
            raise ValueError(
                f"--trained={folder} is a run of {config.name}; expected diffuser in a "
                "maze, or diffusion_policy on pusht or two_route"
            )
        found[of[0]] = Path(folder)
    return found


def available(part: str, log: runs.Log) -> bool:
    """Whether a part's recordings, where it has any, are on this machine."""
    return runs.located([pusht.FILE] if part == "pusht" else [], part, log)


def _module(part: str) -> ModuleType:
    return importlib.import_module(f"experiments.studies.plans.{part}")
