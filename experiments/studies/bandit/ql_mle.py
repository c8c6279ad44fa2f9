"""QL-MLE: maximum likelihood plus the normalised Q term, for a Gaussian policy.

The authors' figure calls it TD3+BC, whose loss it has but for the likelihood in the
place of the squared error.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.studies.bandit import losses, stages
from experiments.studies.bandit.bc_mle import gaussian
from experiments.studies.bandit.networks import Gaussian
from jdql.agents.base import NOTHING, Agent, Stages, blank
from jdql.rl.improvement import normalised_q_loss
from jdql.types import Array, DataSpec, Float, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors'."""

    eta: float = 2.5  # weight of the Q term
    lr: float = 3e-4
    batch_size: int = 100
    hidden: tuple[int, ...] = (128, 128)
    critic_hidden: tuple[int, ...] = (128, 128, 128)

    def tiny(self) -> Any:
        """The same method at the size of a toy."""
        return stages.tiny(self)


class Draws(NamedTuple):
    """The noise of one update: of the policy's actions, and of the choice of critic."""

    action: Float[Array, "B A"]
    coin: Float[Array, ""]


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds QL-MLE; its actions are not clipped, as in the authors' figure."""
    del given
    actor = Gaussian(spec.action_dim, config.hidden)
    critic, fit = stages.critic_stage(config.critic_hidden, config.lr)

    def init_params(key):
        actor_key, critic_key = jax.random.split(key)
        observation, action = blank(spec)
        return {
            "actor": actor.init(actor_key, observation),
            "critic": critic.init(critic_key, observation, action),
        }

    def draw(key: PRNGKeyArray) -> Draws:
        action_key, coin_key = jax.random.split(key)
        shape = (config.batch_size, spec.action_dim)
        return Draws(jax.random.normal(action_key, shape), jax.random.uniform(coin_key))

    def loss(own, params, batch, draws, metrics):
        mean, log_std = gaussian(actor, own, batch.observation)
        bc_loss = -jnp.mean(losses.gaussian_log_prob(batch.action, mean, log_std))
        action = mean + jnp.exp(log_std) * draws.action
        q: Any = critic.apply(params["critic"], batch.observation, action)
        q_loss = normalised_q_loss(q, draws.coin > 0.5)
        return bc_loss + config.eta * q_loss, {"bc_loss": bc_loss, "q_loss": q_loss}

    def sample(params, observation, key):
        mean, log_std = gaussian(actor, params["actor"], observation)
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)

    improve = stages.Stage("actor", loss, config.lr)
    return stages.agent(config.batch_size, init_params, [fit, improve], draw, sample)
