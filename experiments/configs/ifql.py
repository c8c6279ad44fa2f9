"""IFQL (Park, Li & Levine 2025): IDQL with a flow in place of the diffusion.

    python -m experiments.run --config=ifql
    python -m experiments.run --config=ifql:antmaze_umaze     # or another task
    python -m experiments.run --config=ifql:implicit          # acts by V's own policy
    python -m experiments.run --config=ifql --config.agent.expectile=0.7

Dataset: the task's, see `--list --config=TASK`.
Expect: Park et al. 2025 report 65 on D4RL's six AntMaze tasks and 52 on its twelve of
  Adroit, after the last update.  They did not run locomotion, and data and simulator
  here are others: not comparable.
Time: 500,000 updates of networks with four layers of 512, a job for an accelerator.

The authors' settings are the same for every task of D4RL but for AntMaze's cost of 1
for each step; locomotion, which they did not run, has them too.  Nor did they run
kitchen, safety_halfcheetah and bandit: there the agent is the same, on the task's own
schedule and evaluation.
"""

from __future__ import annotations

import dataclasses

from experiments.launch.task import Task, by_family, run
from jdql.agents import ifql
from jdql.config import Config


def settings(task: Task) -> Config:
    """The authors' settings, which are the same for every task of D4RL."""
    return by_family(
        task,
        locomotion=_as_run,
        antmaze=lambda task: _as_run(task, "minus_one"),
        pen=_as_run,
        otherwise=lambda task: run(task, ifql.Config()),
    )


def implicit(config: Config) -> Config:
    """Acts by the implicit policy, of which V is the value, not by the best sample."""
    agent = dataclasses.replace(config.agent, selection="implicit")
    return dataclasses.replace(config, agent=agent)


def _as_run(task: Task, reward: str = "none") -> Config:
    """500 epochs, fifty episodes every hundred."""
    return run(task, ifql.Config(), reward=reward, epochs=500, every=100, episodes=50)
