"""Variants of every config: `--config=NAME:quick` and `--config=NAME:smoke`.

Every public function here is a variant; a system's, a task's or one's own file may
define one of the same name, which then wins.
"""

from __future__ import annotations

import dataclasses

from experiments.configs import tasks
from experiments.launch.task import Task
from jdql.config import Config, DataConfig, EvalConfig

_STEPS = 20  # of an episode of the smoke variant
# What registers simulators that jdql does not install by itself.
_EXTRAS = ("gymnasium_robotics", "jdql.envs.pointmaze", "jdql.envs.pusht")


def quick(config: Config) -> Config:
    """Minutes on two CPU cores: four seeds, 4000 updates, the same code and data."""
    return dataclasses.replace(
        config,
        seeds=4,
        train=dataclasses.replace(config.train, steps=4_000),
        eval=dataclasses.replace(config.eval, every=2_000, episodes=10),
    )


def smoke(config: Config) -> Config:
    """Seconds: tiny networks, a few updates, short episodes, two seeds.

    Nothing is downloaded.  Where jdql has a behaviour policy it collects 2000
    transitions; otherwise the task's stand-in takes the data's place, and noise that of
    simulators that jdql does not install by itself.
    """
    task = tasks.of(config)
    return dataclasses.replace(
        config,
        seeds=2,
        agent=config.agent.tiny(),
        data=_smoke_data(config.data, task),
        train=dataclasses.replace(config.train, steps=4, log_every=2),
        eval=dataclasses.replace(_smoke_eval(config.eval, task), every=2, episodes=2),
    )


def _smoke_data(data: DataConfig, task: Task | None) -> DataConfig:
    stand_in = (task.stand_in,) if task and task.stand_in else data.dataset
    return dataclasses.replace(
        data, dataset=stand_in, source="local", collect_steps=2_000
    )


def _smoke_eval(settings: EvalConfig, task: Task | None) -> EvalConfig:
    if task and settings.env_module in _EXTRAS:
        return dataclasses.replace(
            settings,
            env="jdql/Synthetic-v0",
            env_module="jdql.envs.synthetic",
            env_kwargs={"task": task.family, "max_episode_steps": _STEPS},
            reference="",
        )
    if task and task.horizon <= _STEPS:
        return settings
    kwargs = {**settings.env_kwargs, "max_episode_steps": _STEPS}
    return dataclasses.replace(settings, env_kwargs=kwargs)
