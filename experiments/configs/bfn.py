"""Best-of-N flow with temporal differences (Li, Zhou & Levine 2025); `chunked` is QC.

    python -m experiments.run --config=bfn
    python -m experiments.run --config=bfn:hopper_medium       # or another task
    python -m experiments.run --config=bfn:chunked             # QC: chunks of 5, N = 32

Dataset: the task's, see `--list --config=TASK`.
Expect: the authors have no result for these tasks. On 25 tasks of OGBench, after a
  million updates, they report successes of 52 %, and 51 % with chunks.
Time: 500,000 updates of batch 256. The targets take ten steps of a flow for N actions
  of each transition, which is what an update costs; the quick variant takes minutes.

There is nothing to tune but N, which trades the value of actions for their likelihood:
4 for single actions, 32 for chunks.  AntMaze has a cost of 1 for each step; the pen's
targets take the smaller critic, as in flow Q-learning, whose evaluation both have.
Locomotion has the task's own evaluation; kitchen, safety_halfcheetah and bandit have
the task's own number of updates too.
"""

from __future__ import annotations

import dataclasses

from experiments.launch.task import Task, by_family, run
from jdql.agents import bfn
from jdql.config import Config


def settings(task: Task) -> Config:
    """The authors' agent for single actions."""
    return by_family(
        task,
        locomotion=lambda task: run(task, bfn.Config(), epochs=500),
        antmaze=lambda task: _robotics(task, bfn.Config(), "minus_one"),
        pen=lambda task: _robotics(task, bfn.Config(q_agg="min"), "none"),
        otherwise=lambda task: run(task, bfn.Config()),
    )


def chunked(config: Config) -> Config:
    """QC: the best of 32 chunks of five actions."""
    agent = dataclasses.replace(config.agent, chunk=5, candidates=32)
    return dataclasses.replace(config, agent=agent)


def _robotics(task: Task, agent: bfn.Config, reward: str) -> Config:
    """500 epochs, fifty episodes every hundred."""
    return run(task, agent, reward=reward, epochs=500, every=100, episodes=50)
