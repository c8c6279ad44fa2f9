"""BC-MLE: a Gaussian policy fitted by maximum likelihood.

One Gaussian cannot be at four places: it lies between them and covers none.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from experiments.studies.bandit import losses, stages
from experiments.studies.bandit.networks import Gaussian
from jdql.agents.base import NOTHING, Agent, Stages, blank
from jdql.types import Array, DataSpec, Params

LOG_STD = (-20.0, 2.0)  # the authors' clamp


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors'."""

    lr: float = 3e-4
    batch_size: int = 100
    hidden: tuple[int, ...] = (128, 128)

    def tiny(self) -> Any:
        """The same method at the size of a toy."""
        return stages.tiny(self)


def gaussian(
    network: Gaussian, params: Params, observation: Array
) -> tuple[Array, Array]:
    """Mean and clamped log standard deviation, both [B, A]."""
    outputs: Any = network.apply(params, observation)
    mean, log_std = outputs
    return mean, jnp.clip(log_std, *LOG_STD)


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds BC-MLE; its actions are not clipped, as in the authors' figure."""
    del given
    network = Gaussian(spec.action_dim, config.hidden)

    def init_params(key):
        return {"actor": network.init(key, blank(spec)[0])}

    def loss(own, params, batch, draws, metrics):
        mean, log_std = gaussian(network, own, batch.observation)
        value = -jnp.mean(losses.gaussian_log_prob(batch.action, mean, log_std))
        return value, {"bc_loss": value}

    def sample(params, observation, key):
        mean, log_std = gaussian(network, params["actor"], observation)
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)

    stage = stages.Stage("actor", loss, config.lr)
    return stages.agent(config.batch_size, init_params, [stage], lambda key: (), sample)
