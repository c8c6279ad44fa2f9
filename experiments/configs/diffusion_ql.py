"""Diffusion-QL (Wang, Hunt & Zhou, ICLR 2023): a diffusion policy that follows Q.

    python -m experiments.run --config=diffusion_ql:hopper_medium
    python -m experiments.run --config=hopper_medium          # the same
    python -m experiments.run --config=hopper_medium --sweep='agent.eta=0.5,1,2'

Dataset: the task's, see `--list --config=TASK`.
Expect: the paper's table 1 has 87.0 +- 0.9 on D4RL's walker2d-medium-v2, by offline
  selection. Data and simulator here are others: not comparable. `--list` has the
  scores of all tasks, and `--list --config=TASK` says where each comes from.
Time: 2,000,000 updates for locomotion, about 44 hours for four seeds on two CPU cores;
  the quick variant takes minutes.

The settings of each task are the columns of experiments/configs/tasks.py, the authors'
table but for bandit and safety, and the defaults of `jdql.agents.diffusion_ql.Config`.
"""

from __future__ import annotations

import dataclasses

from experiments.launch.task import Task, run
from jdql.agents import diffusion_ql
from jdql.config import Config


def settings(task: Task) -> Config:
    """The authors' settings for a task."""
    agent = diffusion_ql.Config(
        eta=task.eta,
        lr=task.lr,
        grad_norm=task.grad_norm,
        max_q_backup=task.max_q_backup,
    )
    return run(task, _toy(agent) if task.family == "bandit" else agent)


def _toy(agent: diffusion_ql.Config) -> diffusion_ql.Config:
    """The sizes of the authors' programs for their two-dimensional bandit."""
    return dataclasses.replace(
        agent, batch_size=100, diffusion_steps=50, hidden=(128, 128, 128), step_dim=4
    )
