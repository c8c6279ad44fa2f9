"""CFGRL (Frans et al. 2025): classifier-free guidance by the sign of the advantage.

    python -m experiments.run --config=cfgrl
    python -m experiments.run --config=cfgrl:hopper_medium       # or another task
    python -m experiments.run --config=cfgrl --config.agent.guidance=3
    python -m experiments.run --config=cfgrl:weights             # all at once

Dataset: the task's, see `--list --config=TASK`.
Expect: the paper has no score for these tasks.
Time: 1,000,000 updates of batch 1024 with networks of four layers of 512: for an
  accelerator. The quick variant takes hours on two CPU cores.

Rewards are as they are: of the critics only the sign of the advantage counts.  The
weight of guidance has no part in training, so that the members of `weights` that share
a seed differ in how they act alone.  The authors' schedule stands for locomotion and
AntMaze; pen, kitchen, safety_halfcheetah and bandit have the task's own.
"""

from __future__ import annotations

import dataclasses

from experiments.launch.task import Task, by_family, run
from jdql.agents import cfgrl
from jdql.config import Config

WEIGHTS = (0.5, 1.0, 1.25, 1.5, 2.0, 3.0)  # the authors'


def settings(task: Task) -> Config:
    """The authors' settings, which are the same for every task."""
    return by_family(
        task,
        locomotion=_as_run,
        antmaze=_as_run,
        otherwise=lambda task: run(task, cfgrl.Config(), reward="none"),
    )


def weights(config: Config) -> Config:
    """Every weight of guidance that the authors play."""
    return dataclasses.replace(config, sweep=(("agent.guidance", WEIGHTS),))


def _as_run(task: Task) -> Config:
    """1000 epochs, twenty episodes every 200 of them."""
    return run(
        task, cfgrl.Config(), reward="none", epochs=1_000, every=200, episodes=20
    )
