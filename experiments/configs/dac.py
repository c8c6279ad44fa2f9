"""Diffusion actor-critic (Fang et al., ICLR 2025): noise that follows the slope of Q.

    python -m experiments.run --config=dac
    python -m experiments.run --config=dac:hopper_medium       # or another task

Dataset: the task's, see `--list --config=TASK`.
Expect: the authors (mean of the last evaluations), on D4RL's v2 data of HalfCheetah,
  Hopper and Walker2d: medium 59.1, 101.2, 96.8; medium-replay 55.0, 103.1, 96.8;
  medium-expert 99.1, 111.7, 113.6. Data and simulator here are others: not comparable.
Time: 2,000,000 updates; ten critics at ten sampled actions make one the dearest of all
  systems here. The quick variant takes minutes.

Pessimism (rho), the cloning loss that eta aims at, and in antmazes the fixed eta, the
max-Q backup and the critics' learning rate are those of the authors' commands.  Returns
are scaled to span 1000 for every task, which is their program's default.

They have no kitchen, pen or bandit: there stand the agent's defaults, as in
safety_halfcheetah but for its rho, on the task's own schedule and evaluation.
"""

from __future__ import annotations

import dataclasses

from experiments.launch.task import Task, by_family, run
from jdql.agents import dac
from jdql.config import Config

# Pessimism of each robot; the cloning loss that eta aims at is 1 but for two tasks.
RHO = {"HalfCheetah-v5": 0.0, "Hopper-v5": 1.5, "Walker2d-v5": 1.0}
THRESHOLD = {"halfcheetah_medium_expert": 0.1, "hopper_medium_expert": 0.05}


def settings(task: Task) -> Config:
    """The authors' settings for locomotion and AntMaze, else the agent's defaults."""
    return by_family(
        task,
        locomotion=_locomotion,
        antmaze=_antmaze,
        # The settings of HalfCheetah.
        safety=lambda task: _on(task, dac.Config(rho=RHO["HalfCheetah-v5"])),
        otherwise=lambda task: _on(task, dac.Config()),
    )


def _locomotion(task: Task) -> Config:
    """A learned eta."""
    threshold = THRESHOLD.get(task.name, 1.0)
    return _as_run(task, dac.Config(rho=RHO[task.env], bc_threshold=threshold))


def _antmaze(task: Task) -> Config:
    """Fixed eta and max-Q backup; faster critics in the large mazes."""
    agent = dac.Config(
        eta=0.1,
        eta_lr=None,
        max_q_backup=True,
        rho=1.1 if task.name == "antmaze_large_play" else 1.0,
    )
    if "large" in task.name:
        agent = dataclasses.replace(agent, critic_lr=1e-3)
    return _as_run(task, agent)


def _as_run(task: Task, agent: dac.Config) -> Config:
    """2000 epochs, ten episodes every ten of them."""
    return run(
        task, agent, reward="iql_locomotion", epochs=2_000, every=10, episodes=10
    )


def _on(task: Task, agent: dac.Config) -> Config:
    """The task's own schedule and evaluation."""
    return run(task, agent, reward="iql_locomotion")
