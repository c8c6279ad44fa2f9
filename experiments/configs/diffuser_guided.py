"""Diffuser with return guidance (Janner et al. 2022): a value that moves the plans.

    python -m experiments.run --config=diffuser:hopper_medium --config.run.dir=runs/plan
    python -m experiments.run --config=diffuser_guided:hopper_medium \
        --config.given.planner=runs/plan
    python -m experiments.run --config=diffuser_guided:hopper_medium \
        --config.given.planner=runs/plan --sweep=agent.scale=0,0.001,0.01,0.1

Two runs, one on the other: the planner (`diffuser`, or `diffuser_guided:planner`), then
the value of its noisy plans.  Both have the same task, seeds and data settings.

Dataset: the task's, see `--list --config=TASK`.
Expect: the paper's scores on D4RL are 42.8, 74.3 and 79.6 on medium, 37.7, 93.6 and
  70.6 on medium-replay, 88.9, 103.3 and 106.9 on medium-expert data of HalfCheetah,
  Hopper and Walker2d.  Data and simulator here are others: not comparable.
Time: 1,000,000 updates of the planner and 200,000 of the value; a decision takes 20
  steps of 64 plans, so that evaluations are for an accelerator.  `cpu` has sizes for
  two cores.

Scale and stop are the authors': 0.1 and 2, on HalfCheetah 0.001 and 4, on Hopper's
medium-expert data 0.0001 and 4.  They have no mazes, antmaze, kitchen, pen or bandit
here: there stand locomotion's settings, plans of any goal being the planner's own.

Deviation: the value sees data on the planner's scale; the authors' default for values
has limits scaling, though plans that it guides are gaussian.
"""

from __future__ import annotations

import dataclasses

from experiments.configs import diffuser as planners
from experiments.configs import tasks
from experiments.launch.task import Task, for_two_cores, run
from jdql.agents import diffuser, diffuser_guided
from jdql.config import Config


def settings(task: Task) -> Config:
    """The authors' settings for locomotion."""
    config = planners.settings(task)
    agent = diffuser_guided.Config()
    if task.name.startswith("halfcheetah"):
        agent = diffuser_guided.Config(dim_mults=(1, 4, 8), scale=1e-3, stop=4)
    if task.name == "hopper_medium_expert":
        agent = diffuser_guided.Config(scale=1e-4, stop=4)
    epochs = min(200, task.epochs)
    return dataclasses.replace(run(task, agent, epochs=epochs), data=config.data)


def planner(config: Config) -> Config:
    """The first run: `diffuser` on this task, without goals."""
    task = tasks.of(config)
    own = planners.settings(task) if task else config
    agent = own.agent if task else diffuser.Config()
    agent = dataclasses.replace(agent, goal=(), execute=1)
    return dataclasses.replace(config, agent=agent, train=own.train)


def cpu(config: Config) -> Config:
    """Sizes for two CPU cores."""
    if isinstance(config.agent, diffuser.Config):
        return planners.cpu(config)
    agent = dataclasses.replace(
        config.agent, dim_mults=(1, 2, 4), candidates=16, batch_size=32
    )
    return for_two_cores(config, agent, every=10_000, episodes=5)
