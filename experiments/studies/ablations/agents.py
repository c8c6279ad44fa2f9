"""All agents on a few tasks: score against what an update costs.

Every agent has its system's settings for the task, from experiments/configs, or else
its own defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.launch.names import agent_names, system_names, task_names
from experiments.launch.overrides import Override
from experiments.launch.resolve import resolve
from experiments.studies.ablations import plots, runs, speed
from jdql.config import Config
from jdql.report.plots import save

TASKS = ("walker2d_medium", "hopper_medium", "safety_halfcheetah")
UPDATES = 20_000


class Entry(NamedTuple):
    """One agent on one task.

    Attributes:
      agent: its name.
      scores: of each seed, at the last evaluation.
      update: milliseconds of an update of one seed, on one device.
      decision: milliseconds from one observation to its action.
    """

    agent: str
    scores: list[float]
    update: float
    decision: float


def config_of(agent: str, task: str) -> Config:
    """The settings of an agent for a task; all agents are evaluated alike.

    Raises:
      ValueError: there is no such agent or task.
    """
    if agent not in system_names() or task.partition(":")[0] not in task_names():
        return resolve(task, [Override("agent", agent)])
    own = resolve(f"{agent}:{task}")
    return dataclasses.replace(own, eval=resolve(task).eval)


def configs(
    task: str,
    agents: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    full: bool,
    overrides: Sequence[Override] = (),
) -> list[Config]:
    """The runs of one task, an agent each.

    Raises:
      ValueError: there is no such task or agent, or an override fits none.
    """

    def of(agent: str) -> Config:
        named = dataclasses.replace(config_of(agent, task), name=f"{task}-{agent}")
        sized = runs.sized(named, None if full else UPDATES, seeds, overrides)
        return runs.placed(sized, folder)

    return [of(agent) for agent in agents]


def run(
    tasks: Sequence[str],
    agents: Sequence[str],
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
    agents = list(agents) or agent_names()
    tasks = list(tasks) or [task for task in TASKS if runs.available(task, log)]
    entries: dict[str, list[Entry]] = {}
    for task in tasks:
        planned = configs(task, agents, seeds, folder, full=full, overrides=overrides)
        for config in planned:
            speed.measured([config], log)
            if not runs.trained(config, log):
                return None
        label = f"{task}, {planned[0].train.steps:,} updates"
        entries[label] = [
            entry(agent, Path(config.run.dir))
            for agent, config in zip(agents, planned, strict=True)
        ]
    log("\n" + table(entries))
    first = speed.read(Path(planned[0].run.dir))
    note = (
        f"{len(seeds)} seed(s), dots; rings are their means. Time of an update of one "
        f"seed on one {first['device']}."
    )
    return save(plots.agents(entries, note), out / "agents")


def entry(agent: str, folder: Path) -> Entry:
    """What a finished run says of its agent."""
    found = speed.read(folder)
    scores = [runs.final_score(row) for row in runs.final_rows(folder)]
    each = found["milliseconds"] * found["devices"] / found["members"]
    return Entry(agent, scores, each, found["acting_milliseconds"])


def table(entries: dict[str, list[Entry]]) -> str:
    """Score, update time and acting time: a line for each task and agent."""
    lines = [
        f"{'task':40}{'agent':>14}{'score':>8}{'ms / update':>13}{'ms to act':>11}"
        "   score by seed"
    ]
    for task, line in entries.items():
        for agent, scores, update, decision in line:
            each = " ".join(f"{score:.1f}" for score in scores)
            lines.append(
                f"{task:40}{agent:>14}{np.mean(scores):8.1f}{update:13.2f}"
                f"{decision:11.2f}   {each}"
            )
    return "\n".join(lines)
