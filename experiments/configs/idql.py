"""IDQL (Hansen-Estruch et al. 2023): cloned diffusion, implicit Q-learning, best of N.

    python -m experiments.run --config=idql
    python -m experiments.run --config=idql:antmaze_umaze     # or another task
    python -m experiments.run --config=idql:implicit          # acts by V's own policy
    python -m experiments.run --config=idql --config.agent.candidates=128

Dataset: the task's, see `--list --config=TASK`.
Expect: the paper has 82.5 on D4RL's walker2d-medium-v2, and 80.2 with one setting for
  all tasks (the mean of the last evaluations, 64 candidates).  Data and simulator here
  are others: not comparable.
Time: 3,000,000 updates of batch 512; the quick variant takes minutes.

Returns of locomotion are scaled to span 1000, AntMaze has a cost of 1 for each step and
expectile 0.9.  The number of candidates is the paper's for all tasks alike, 64; with
the best number of each family, 128 for locomotion and 32 for AntMaze, it reports more.

The authors have no kitchen, pen or bandit: there stand the agent's defaults, which are
those of locomotion, and rewards as they are, on the task's own schedule and evaluation.
safety_halfcheetah keeps those two as well, with locomotion's rewards.
"""

from __future__ import annotations

import dataclasses

from experiments.launch.task import Task, by_family, run
from jdql.agents import idql
from jdql.config import Config


def settings(task: Task) -> Config:
    """The authors' settings for locomotion and AntMaze, else the agent's defaults."""
    return by_family(
        task,
        locomotion=_locomotion,
        antmaze=_antmaze,
        safety=_safety,
        otherwise=lambda task: run(task, idql.Config(), reward="none"),
    )


def implicit(config: Config) -> Config:
    """Acts by the implicit policy, of which V is the value, not by the best sample."""
    agent = dataclasses.replace(config.agent, selection="implicit")
    return dataclasses.replace(config, agent=agent)


def _locomotion(task: Task) -> Config:
    """Expectile 0.7 and returns that span 1000."""
    return _as_run(task, idql.Config(expectile=0.7), "iql_locomotion")


def _antmaze(task: Task) -> Config:
    """Expectile 0.9 and costs."""
    return _as_run(task, idql.Config(expectile=0.9), "minus_one")


def _as_run(task: Task, agent: idql.Config, reward: str) -> Config:
    """3000 epochs, fifty episodes every 250 of them."""
    return run(task, agent, reward=reward, epochs=3_000, every=250, episodes=50)


def _safety(task: Task) -> Config:
    """The settings of locomotion on that task's own schedule and evaluation."""
    return run(task, idql.Config(expectile=0.7), reward="iql_locomotion")
