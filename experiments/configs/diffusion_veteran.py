"""Diffusion Veteran (Lu et al. 2025): many plans in large steps, the best followed.

    python -m experiments.run --config=diffusion_veteran:pointmaze_umaze:cpu
    python -m experiments.run --config=diffusion_veteran:pointmaze_large
    python -m experiments.run --config=diffusion_veteran:hopper_medium

Dataset: the task's, see `--list --config=TASK`.
Expect: the paper reports the best mean of all planners on D4RL's maze2d.  Its program
  counts every step after the first arrival there as paid, whether the point stays or
  not; here a step is paid at the goal alone: not comparable.
Time: 1,000,000 updates of the authors' sizes are for an accelerator, and so is a
  decision, which is 50 plans by 20 steps of denoising; `cpu` has sizes for two cores.

Observations have gaussian scaling, actions none.  In the mazes plans are of 32 states
15 steps apart, in AntMaze of 40 states 25 apart, in the kitchen of 32 states 4 apart,
in locomotion of 4 states in a row.  In the mazes and the kitchen the whole plan is
valued, and the inverse dynamics see how far to go rather than where.

The goal of a point maze is the same in all episodes, of the data and of the task, so
that planner and value need not be told: plans are of positions and speeds, as the
authors'.  AntMaze's goals vary: there plans are of whole observations, in which the
goal stays as it is at the first state, so that planner and value know it.

The authors' mazes pay -1 for each step up to the arrival, where their episodes end, and
leave out data that never arrive.  Here those are kept, with a return of 0, and d steps
before an arrival it is 0.997^d, by the discount of their other tasks.  Nobody in the
data of a point maze stays at the goal for more than a few dozen steps; windows stay
there, at rest, so that plans do.

The authors have no pen and no bandit: there stand locomotion's settings, on the task's
own schedule.  The bandit's episodes have one step, behind which its state is repeated.
"""

from __future__ import annotations

import dataclasses

from experiments.launch.task import Task, by_family, for_two_cores, run
from jdql.agents import diffusion_veteran
from jdql.config import Config


def settings(task: Task) -> Config:
    """The authors' settings for mazes, the kitchen and locomotion."""
    agent = diffusion_veteran.Config()
    return by_family(
        task,
        pointmaze=_pointmaze,
        antmaze=_antmaze,
        kitchen=_kitchen,
        locomotion=lambda task: _run(task, agent, epochs=1_000),
        bandit=lambda task: run(
            task,
            dataclasses.replace(agent, horizon=2, padding=True),
            reward="none",
            scaling="identity",
        ),
        otherwise=lambda task: _run(task, agent),
    )


def _pointmaze(task: Task) -> Config:
    agent = _valued_whole(horizon=32, stride=15, states=4, goal=(4, 5), rebase=(0, 1))
    return _run(task, agent, epochs=1_000)


def _antmaze(task: Task) -> Config:
    """Eight blocks, the deepest of the authors' planners."""
    agent = _valued_whole(horizon=40, stride=25, rebase=(0, 1), depth=8)
    return _run(task, agent, epochs=1_000)


def _kitchen(task: Task) -> Config:
    return _run(task, _valued_whole(horizon=32, stride=4), epochs=1_000)


def _valued_whole(**changes) -> diffusion_veteran.Config:
    """What mazes and kitchen have in common; the value's weights are an early copy."""
    return diffusion_veteran.Config(
        padding=True,
        value="plan",
        value_updates=200_000,
        termination_penalty=0.0,
        weight=0.0,
        heads=4,
        **changes,
    )


def _run(
    task: Task, agent: diffusion_veteran.Config, epochs: int | None = None
) -> Config:
    """On the task's rewards as they are."""
    config = run(task, agent, reward="none", epochs=epochs, scaling="gaussian")
    data = dataclasses.replace(config.data, scale_actions="identity")
    return dataclasses.replace(config, data=data)


def cpu(config: Config) -> Config:
    """Sizes for two CPU cores: a narrow planner, 20 plans of ten steps of denoising.

    In mazes a plan is followed for five steps.
    """
    agent = dataclasses.replace(
        config.agent,
        width=64,
        heads=2,
        depth=2,
        step_dim=64,
        batch_size=64,
        planner_lr=1e-3,
        value_lr=1e-3,
        actor_lr=1e-3,
        planner_ema_decay=0.998,
        decay_steps=20_000,
        value_updates=None,
        candidates=20,
        sample_steps=10,
        execute=min(5, config.agent.stride),
    )
    return for_two_cores(config, agent, every=10_000, episodes=5)
