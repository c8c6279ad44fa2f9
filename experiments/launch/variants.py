"""Variants of every config: `--config=NAME:quick` and `--config=NAME:smoke`.

Every public function here is a variant; a config's own file may define one of the same
name, which then wins.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jdql.config import Config, DataConfig, EvalConfig


def quick(config: Config) -> Config:
    """Minutes on two CPU cores: four seeds, 4000 updates, the same code and data."""
    return dataclasses.replace(
        config,
        seeds=4,
        train=dataclasses.replace(config.train, steps=4_000),
        eval=dataclasses.replace(config.eval, every=2_000, episodes=10),
    )


# An agent takes of these what it has.
_TINY = {
    "hidden": (16, 16),
    "width": 16,
    "blocks": 1,
    "batch_size": 8,
    "critics": 3,
    "backup_actions": 2,
    "candidates": 3,
    "diffusion_steps": 2,
    "flow_steps": 2,
    "schedule": "vp",
    "ema_start": 1,
    "ema_every": 1,
}


def smoke(config: Config) -> Config:
    """Seconds: tiny networks, a few updates, short episodes, two seeds.

    Nothing is downloaded.  Where jdql has a behaviour policy it collects 2000
    transitions; otherwise noise of the task's sizes takes the data's place, and, for
    simulators that jdql does not install by itself, the environment's.
    """
    data, evaluation = _smoke_data(config), _smoke_eval(config)
    tiny = {field.name for field in dataclasses.fields(config.agent)} & _TINY.keys()
    return dataclasses.replace(
        config,
        seeds=2,
        agent=dataclasses.replace(config.agent, **{n: _TINY[n] for n in tiny}),
        data=data,
        train=dataclasses.replace(config.train, steps=4, log_every=2),
        eval=dataclasses.replace(evaluation, every=2, episodes=2),
    )


def _smoke_data(config: Config) -> DataConfig:
    from jdql.data import minari

    data = dataclasses.replace(config.data, source="local", collect_steps=2_000)
    if all(not minari.is_id(d) or _collectable(d) for d in data.dataset):
        return data
    noise = f"jdql.envs.synthetic:{config.eval.reference}"
    return dataclasses.replace(data, dataset=(noise,))


def _collectable(dataset_id: str) -> bool:
    """Whether jdql plays this dataset itself, with a policy that it bundles."""
    from jdql.collect.collect import BEHAVIOURS
    from jdql.data.sources import local_id

    return local_id(dataset_id).removeprefix("jdql/").partition("-v")[0] in BEHAVIOURS


def _smoke_eval(config: Config) -> EvalConfig:
    settings = config.eval
    if settings.env_module == "gymnasium_robotics":
        noise: dict[str, Any] = {"task": settings.reference}
        return dataclasses.replace(
            settings,
            env="jdql/Synthetic-v0",
            env_module="jdql.envs.synthetic",
            env_kwargs={**noise, "max_episode_steps": 20},
            reference="",
        )
    if settings.env_module:  # jdql's own environments are short already
        return settings
    kwargs = {**settings.env_kwargs, "max_episode_steps": 20}
    return dataclasses.replace(settings, env_kwargs=kwargs)
