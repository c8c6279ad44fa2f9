"""Diffuser (Janner et al. 2022): planning by denoising trajectories.

    python -m experiments.run --config=diffuser:pointmaze_umaze:cpu
    python -m experiments.run --config=diffuser:pointmaze_umaze:early:cpu
    python -m experiments.run --config=diffuser:pointmaze_large
    python -m experiments.run --config=diffuser:hopper_medium       # the planner alone

In the mazes a plan ends at the goal and is followed by a controller.  On other tasks
it is a likely future, whose first action is taken; `diffuser_guided` builds on such a
run and plans for return.

Dataset: the task's, see `--list --config=TASK`.
Expect: the paper has 113.9, 121.5 and 123.0 on D4RL's maze2d umaze, medium and large,
  scored by D4RL's own controller, which is slower than the one that scores 100 here:
  not comparable.
Time: 1,000,000 updates of the authors' sizes (2,000,000 in the mazes) are for an
  accelerator; `cpu` has sizes for two cores.

Mazes have limits scaling of everything and clipped estimates, plans of 128, 256 or 384
steps and as many diffusion steps as the authors (64 in the umaze, else 256); locomotion
has gaussian scaling, and on HalfCheetah plans of 4 steps with attention.  The authors
have no antmaze, kitchen, pen or bandit: there stand locomotion's settings, on the
task's own schedule.
"""

from __future__ import annotations

import dataclasses

from experiments.launch.task import Task, by_family, for_two_cores, run
from jdql.agents import diffuser
from jdql.config import Config

# Steps of a plan, and of diffusion.
_MAZES = {"umaze": (128, 64), "medium": (256, 256), "large": (384, 256)}


def settings(task: Task) -> Config:
    """The authors' settings for mazes and locomotion."""
    return by_family(
        task,
        pointmaze=_maze,
        locomotion=lambda task: _locomotion(task, epochs=1_000),
        bandit=lambda task: run(task, _one_step(), scaling="identity"),
        otherwise=_locomotion,
    )


def _maze(task: Task) -> Config:
    """A plan from here to the goal, made once and followed to the episode's end."""
    horizon, steps = _MAZES[task.name.partition("_")[2]]
    agent = diffuser.Config(
        horizon=horizon,
        states=4,
        goal=(4, 5),
        padding=False,
        action_weight=1.0,
        diffusion_steps=steps,
        clip=True,
        dim_mults=(1, 4, 8),
        execute=task.horizon,
    )
    return run(task, agent, epochs=2_000, scaling="limits")


def _locomotion(task: Task, epochs: int | None = None) -> Config:
    agent = diffuser.Config()
    if task.name.startswith("halfcheetah"):
        agent = diffuser.Config(horizon=4, dim_mults=(1, 4, 8), attention=True)
    return run(task, agent, epochs=epochs, scaling="gaussian")


def _one_step() -> diffuser.Config:
    """The bandit's episodes have one step, behind which all is padding."""
    return diffuser.Config(horizon=8)


def early(config: Config) -> Config:
    """In the mazes, plans that end as soon as they can without a jump."""
    agent = config.agent
    if not agent.goal:
        return config
    horizons = (8, 16, 24, 32, *range(48, 385, 16))
    shorter = tuple(steps for steps in horizons if steps < agent.horizon)
    return dataclasses.replace(
        config, agent=dataclasses.replace(agent, shorter=shorter, candidates=8)
    )


def cpu(config: Config) -> Config:
    """Sizes for two CPU cores: a narrow network, 32 diffusion steps, one seed."""
    agent = dataclasses.replace(
        config.agent,
        dim=32,
        dim_mults=(1, 2, 4) if config.agent.horizon > 4 else (1, 2),
        attention=False,
        diffusion_steps=min(config.agent.diffusion_steps, 32),
        batch_size=32,
        lr=1e-3,
        ema_start=1_000,
    )
    return for_two_cores(config, agent, every=4_000)
