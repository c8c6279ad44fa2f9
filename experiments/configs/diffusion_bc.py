"""Diffusion behaviour cloning (Wang, Hunt & Zhou, ICLR 2023): Diffusion-QL without Q.

    python -m experiments.run --config=diffusion_bc
    python -m experiments.run --config=diffusion_bc:safety_halfcheetah    # another task

Dataset: the task's, see `--list --config=TASK`.
Expect: the paper's table 2 has 76.6 +- 7.0, 78.0 +- 5.5 and 103.1 +- 4.4 on D4RL's
  medium-expert-v2 data of HalfCheetah, Hopper and Walker2d. Data and simulator here are
  others: not comparable. On safety_halfcheetah jdql has 73.3 +- 0.3 (three seeds, 100
  episodes each; BUILD_NOTES.md).
Time: 2,000,000 updates on walker2d_medium, each a tenth of Diffusion-QL's; the quick
  variant takes minutes.

The authors' `--algo bc` reads the learning rate and the length of training from their
table for Diffusion-QL, and nothing else of it: gradients are not clipped.
"""

from __future__ import annotations

import dataclasses

from experiments.launch.task import Task, run
from jdql.agents import diffusion_bc
from jdql.config import Config


def settings(task: Task) -> Config:
    """The authors' settings for a task; rewards play no part."""
    agent = diffusion_bc.Config(lr=task.lr)
    return run(task, _toy(agent) if task.family == "bandit" else agent)


def _toy(agent: diffusion_bc.Config) -> diffusion_bc.Config:
    """The sizes of the authors' programs for their two-dimensional bandit."""
    return dataclasses.replace(
        agent, batch_size=100, diffusion_steps=50, hidden=(128, 128, 128), step_dim=4
    )
