"""The number of diffusion steps: score and update time against T.

On the bandit and on one locomotion dataset. The paper's ablation (its appendix on the
number of diffusion steps) trains on D4RL's data to the end; the default size here is
10,000 updates, where every policy is still young.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.launch.overrides import Override
from experiments.launch.resolve import resolve
from experiments.studies.ablations import plots, runs, speed
from jdql.agents import diffusion_ql
from jdql.config import Config
from jdql.report.plots import save

STEPS = (2, 5, 10, 20)
UPDATES = 10_000
# Deviation: on the bandit about three times the authors' rate, for a tenth of their
# updates.
BANDIT_LR = 1e-3


class Point(NamedTuple):
    """One run: T, each seed's score, and milliseconds of an update of all seeds."""

    steps: int
    scores: list[float]
    milliseconds: float


def configs(
    task: str,
    seeds: Sequence[int],
    folder: Path,
    *,
    full: bool,
    overrides: Sequence[Override] = (),
) -> list[Config]:
    """The runs of one task, shortest chain first.

    Raises:
      ValueError: there is no such task, or its agent is not Diffusion-QL.
    """
    config = resolve(task)
    if not isinstance(config.agent, diffusion_ql.Config):
        raise ValueError(f"--config={task}: the figure is about Diffusion-QL's T")
    if config.name == "bandit" and not full:
        agent = dataclasses.replace(config.agent, lr=BANDIT_LR, critic_lr=BANDIT_LR)
        config = dataclasses.replace(config, agent=agent)
    config = runs.sized(config, None if full else UPDATES, seeds, overrides)

    def of(T: int) -> Config:
        agent = dataclasses.replace(config.agent, diffusion_steps=T)
        changed = dataclasses.replace(config, agent=agent, name=f"{config.name}-T{T}")
        return runs.placed(changed, folder)

    return [of(T) for T in STEPS]


def run(
    tasks: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    folder: Path,
    *,
    full: bool,
    overrides: Sequence[Override],
    log: runs.Log,
) -> list[Path] | None:
    """Trains what is missing, prints the table and draws the figure.

    Returns:
      The files that were written; None where the user stopped the training.

    Raises:
      ValueError, OSError: as `experiments.run`.
    """
    points: dict[str, list[Point]] = {}
    for task in tasks:
        planned = configs(task, seeds, folder, full=full, overrides=overrides)
        speed.measured(planned, log)
        for config in planned:
            if not runs.trained(config, log):
                return None
        label = f"{task}, {planned[0].train.steps:,} updates"
        points[label] = [_point(config) for config in planned]
    log("\n" + table(points))
    first = speed.read(Path(planned[0].run.dir))
    note = (
        f"{len(seeds)} seed(s), dots; lines are their means. Time: all seeds together, "
        f"median of {first['calls']} warm calls on {first['devices']} x "
        f"{first['device']}."
    )
    return save(plots.steps(points, note), out / "steps")


def _point(config: Config) -> Point:
    folder = Path(config.run.dir)
    measured = speed.read(folder)
    scores = [runs.final_score(row) for row in runs.final_rows(folder)]
    return Point(config.agent.diffusion_steps, scores, measured["milliseconds"])


def table(points: dict[str, list[Point]]) -> str:
    """Score and update time, one line for each task and T."""
    lines = [f"{'task':36}{'T':>4}{'score':>9}{'ms / update':>13}   score by seed"]
    for task, line in points.items():
        for T, scores, milliseconds in line:
            each = " ".join(f"{score:.1f}" for score in scores)
            lines.append(
                f"{task:36}{T:4d}{np.mean(scores):9.1f}{milliseconds:13.2f}   {each}"
            )
    return "\n".join(lines)
