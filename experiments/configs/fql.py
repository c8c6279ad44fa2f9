"""Flow Q-learning (Park, Li & Levine 2025): a one-step student of a cloned flow.

    python -m experiments.run --config=fql
    python -m experiments.run --config=fql:antmaze_umaze       # or another task
    python -m experiments.run --config=fql:chunked             # QC-FQL, chunks of 5
    python -m experiments.run --config=fql --sweep=agent.alpha=0.03,0.1,0.3,1,3,10

Dataset: the task's, see `--list --config=TASK`.
Expect: the authors have no result for locomotion. For AntMaze they report, on D4RL's v2
  data: umaze 96, umaze-diverse 89, medium-play 78, medium-diverse 71, large-play 84,
  large-diverse 83; for the pen 53 (human) and 74 (cloned). Minari's data and simulators
  are others: not comparable.
Time: 500,000 updates of batch 256, each with ten steps of a flow; the quick variant
  takes minutes.

`alpha`, how much the student keeps to its teacher, is the one number to tune.  The
authors' values: 10 for AntMaze, 3 for its large mazes, 10,000 for the pen, where the
targets take the smaller critic.  AntMaze has a cost of 1 for each step.  The authors
report the last policies, so no evaluation should be chosen.

For tasks without a row they advise to normalise Q and to search 0.03 to 10: locomotion,
kitchen, safety_halfcheetah and bandit have 1, which nobody tuned, and the task's own
evaluation; all of these but locomotion have the task's own number of updates too.
"""

from __future__ import annotations

import dataclasses

from experiments.launch.task import Task, by_family, run
from jdql.agents import fql
from jdql.config import Config


def settings(task: Task) -> Config:
    """The authors' settings for a task, else their advice for tasks without a row."""
    return by_family(
        task,
        locomotion=lambda task: run(task, _untuned(), epochs=500),
        antmaze=_antmaze,
        pen=_pen,
        otherwise=lambda task: run(task, _untuned()),
    )


def chunked(config: Config) -> Config:
    """QC-FQL: chunks of five actions, alpha 100 (Li, Zhou & Levine 2025).

    The authors never divide Q by its size, and have one alpha for all their tasks, none
    of which is here.
    """
    agent = dataclasses.replace(
        config.agent, chunk=5, alpha=100.0, normalize_q_loss=False
    )
    return dataclasses.replace(config, agent=agent)


def _untuned() -> fql.Config:
    """Q in units of itself."""
    return fql.Config(alpha=1.0, normalize_q_loss=True)


def _antmaze(task: Task) -> Config:
    """Costs."""
    agent = fql.Config(alpha=3.0 if "large" in task.name else 10.0)
    return _as_run(task, agent, "minus_one")


def _pen(task: Task) -> Config:
    """Rewards as they are, and the smaller critic."""
    return _as_run(task, fql.Config(alpha=10_000.0, q_agg="min"), "none")


def _as_run(task: Task, agent: fql.Config, reward: str) -> Config:
    """The authors' schedule on D4RL: 500 epochs, fifty episodes every hundred."""
    return run(task, agent, reward=reward, epochs=500, every=100, episodes=50)
