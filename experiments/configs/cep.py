"""CEP / QGPO (Lu et al. 2023): a cloned diffusion, guided by a contrastive energy.

    python -m experiments.run --config=cep:behaviour --config.run.dir=runs/behaviour
    python -m experiments.run --config=cep --config.given.behaviour=runs/behaviour
    python -m experiments.run --config=cep:iql --config.given.behaviour=runs/behaviour
    python -m experiments.run --config=cep --config.given.behaviour=runs/behaviour \
        --sweep=agent.guidance=0,1,2,3,5,8,10

Two runs, one on the other: `behaviour` clones the data by diffusion, and the other
learns critics and an energy of it.  Both have the same task, seeds and data settings.

Dataset: the task's, see `--list --config=TASK`.
Expect: the paper's averages are 86.6 over the nine locomotion tasks and 78.3 over the
  six AntMazes of D4RL, the weight of guidance chosen for each.  Data and simulator here
  are others: not comparable.
Time: 600,000 updates of the behaviour, 1,000,000 of the energy, whose sampled actions
  (15 network calls for 32 actions a transition) make one dear; the quick variant takes
  an hour on two cores.

Returns of locomotion are scaled to span 1000, AntMaze has a cost of 1 for each step and
32 sampled actions a state.  The authors choose the weight of guidance by playing; the
default is 1, at which the policy is the one that the energy was learned for.  They have
no kitchen, pen or bandit: there stand locomotion's settings, rewards as they are, on
the task's own schedule and evaluation.

Deviation: the behaviour's network is Diffusion-QL's, the authors' is a larger one with
residual blocks.
"""

from __future__ import annotations

import dataclasses

from experiments.launch.task import EPOCH, Task, by_family, run
from jdql.agents import cep, diffusion_bc
from jdql.config import Config


def settings(task: Task) -> Config:
    """The authors' settings for locomotion and AntMaze, else the agent's defaults."""
    return by_family(
        task,
        locomotion=lambda task: _as_run(task, cep.Config(), "iql_locomotion"),
        antmaze=lambda task: _as_run(task, cep.Config(support=32), "minus_one"),
        safety=lambda task: run(task, cep.Config(), reward="iql_locomotion"),
        otherwise=lambda task: run(task, cep.Config(), reward="none"),
    )


def behaviour(config: Config) -> Config:
    """The first run: the data's behaviour, cloned by a diffusion of 1000 steps."""
    agent = diffusion_bc.Config(
        diffusion_steps=1000,
        schedule="scaled_linear",
        sampler="dpmpp_2m",
        sample_steps=15,
    )
    # Where the task's own schedule is shorter, that is the behaviour's as well.
    steps = min(config.train.steps, 600 * EPOCH)
    train = dataclasses.replace(config.train, steps=steps)
    return dataclasses.replace(config, agent=agent, train=train)


def iql(config: Config) -> Config:
    """Critics of implicit Q-learning, whose targets need no sampled actions."""
    agent = dataclasses.replace(config.agent, critic="iql")
    return dataclasses.replace(config, agent=agent)


def _as_run(task: Task, agent: cep.Config, reward: str) -> Config:
    """A hundred epochs of 10,000 updates, ten episodes every four of them."""
    return run(task, agent, reward=reward, epochs=1_000, every=40, episodes=10)
