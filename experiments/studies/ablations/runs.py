"""Run folders as the material of a figure: trained once, read ever after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import run
from experiments.launch import overrides as overrides_lib
from experiments.launch import run_folder
from experiments.launch.overrides import Override
from experiments.launch.resolve import resolve
from jdql.config import Config
from jdql.data import npz
from jdql.runtime.metrics import Row, read_rows

Log = Callable[[str], None]


def available(task: str, log: Log) -> bool:
    """Whether a task's recordings, where it has any, are on this machine."""
    files = [name for name in resolve(task).data.dataset if name.endswith(".npz")]
    return located(files, task, log)


def located(files: Iterable[str], name: str, log: Log) -> bool:
    """Whether recordings are on this machine; the log says what is left out if not."""
    try:
        for file in files:
            npz.locate(file)
    except FileNotFoundError as error:
        log(f"{error}; {name} is left out")
        return False
    return True


def sized(
    config: Config,
    steps: int | None,
    seeds: Sequence[int],
    overrides: Iterable[Override],
) -> Config:
    """A config of the given size: two evaluations, of which the last one counts.

    Args:
      config: the task, with the authors' size.
      steps: updates; None leaves the size as it is.
      seeds: consecutive.
      overrides: of the user, who has the last word on every setting but the agent.

    Raises:
      ValueError: the user asks for another agent, or an override is wrong.
    """
    config = dataclasses.replace(config, seed=seeds[0], seeds=len(seeds))
    if steps is not None:
        config = dataclasses.replace(
            config,
            train=dataclasses.replace(config.train, steps=steps),
            eval=dataclasses.replace(config.eval, every=max(1, steps // 2)),
        )
    for override in overrides:
        if override.path == "agent":
            raise ValueError("the agent of this figure is fixed: drop --config.agent")
        config = overrides_lib.apply(config, override)
    return config


def placed(config: Config, folder: Path) -> Config:
    """The config with its run folder; the number of updates is part of its name."""
    name = f"{config.name}-{config.train.steps}"
    settings = dataclasses.replace(config.run, dir=str(folder / name))
    return dataclasses.replace(config, run=settings)


def trained(config: Config, log: Log) -> bool:
    """Trains the run of `config.run.dir` to its end, unless that has been done.

    Returns:
      Whether it is finished; it is not where the user stopped it.

    Raises:
      ValueError: the folder holds a run with other settings.
    """
    folder = Path(config.run.dir)
    try:
        run_folder.choose(config)
    except ValueError as error:
        raise ValueError(
            f"{folder} holds a run with other settings: give another --runs=FOLDER"
        ) from error
    if finished(config):
        log(f"{folder}: trained already")
        return True
    run.launch(config)
    return finished(config)


def finished(config: Config) -> bool:
    """Whether the run's last evaluation is on record."""
    rows = read_rows(Path(config.run.dir) / "evaluations.jsonl")
    return bool(rows) and rows[-1]["step"] >= config.train.steps


def final_rows(folder: Path) -> list[Row]:
    """The rows of a run's last evaluation, one for each member."""
    rows = read_rows(folder / "evaluations.jsonl")
    return [row for row in rows if row["step"] == rows[-1]["step"]]


def final_score(row: Row) -> float:
    """A member's normalised score, or its return where there is no reference."""
    return row["return_mean"] if row["score_mean"] is None else row["score_mean"]


def final_metrics(
    folder: Path, names: Sequence[str], share: float = 0.1
) -> list[dict[str, Any]]:
    """Each member's metrics, averaged over the last `share` of the updates.

    Returns:
      A row for each member, in the order of the record: its seed and swept settings,
      and the mean of each of `names`.
    """
    rows = read_rows(folder / "metrics.jsonl")
    if not rows:
        raise ValueError(
            f"{folder} has no metrics: train.log_every must not exceed train.steps"
        )
    last = rows[-1]["step"]
    members: dict[tuple, list[Row]] = {}
    for row in rows:
        identity = {
            n: v for n, v in row.items() if n == "seed" or n.startswith("agent.")
        }
        if row["step"] > (1 - share) * last:
            members.setdefault(tuple(identity.items()), []).append(row)
    return [
        {**dict(identity), **{n: float(np.mean([r[n] for r in group])) for n in names}}
        for identity, group in members.items()
    ]
