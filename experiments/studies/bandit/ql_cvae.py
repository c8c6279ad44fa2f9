"""QL-CVAE: an autoencoder's actions, shifted uphill on Q: BCQ on the bandit.

The shift reaches 0.05 at most, so the policy stays where the autoencoder puts it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.studies.bandit import stages
from experiments.studies.bandit.bc_cvae import decode, init_vae, vae_stage
from experiments.studies.bandit.networks import VAE, Shift
from jdql.agents.base import NOTHING, Agent, Stages, blank
from jdql.types import Array, DataSpec, Float, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors'."""

    lr: float = 3e-4
    batch_size: int = 100
    hidden: tuple[int, ...] = (128, 128)
    critic_hidden: tuple[int, ...] = (128, 128, 128)
    reach: float = 0.05  # of the shift
    # The authors' figure shows the autoencoder's samples; True shifts them, as BCQ
    # does when it acts.
    shifted: bool = False

    def tiny(self) -> Any:
        """The same method at the size of a toy."""
        return stages.tiny(self)


class Draws(NamedTuple):
    """The noise of one update: of learning to encode, and of the actions to shift."""

    encoder: Float[Array, "B L"]
    behaviour: Float[Array, "B L"]


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds QL-CVAE."""
    del given
    vae = VAE(spec.action_dim, config.hidden)
    shift = Shift(config.reach, config.hidden)
    critic, fit = stages.critic_stage(config.critic_hidden, config.lr)

    def init_params(key):
        keys = jax.random.split(key, 3)
        observation, action = blank(spec)
        return {
            "vae": init_vae(vae, spec, keys[0]),
            "shift": shift.init(keys[1], observation, action),
            "critic": critic.init(keys[2], observation, action),
        }

    def draw(key: PRNGKeyArray) -> Draws:
        noise = jax.random.normal(key, (2, config.batch_size, vae.latent_dim))
        return Draws(*noise)

    def behaviour(params, observation, noise):
        return jnp.tanh(decode(vae, params["vae"], observation, noise))

    def loss(own, params, batch, draws, metrics):
        action = behaviour(params, batch.observation, draws.behaviour)
        moved = shift.apply(own, batch.observation, action)
        value = -jnp.mean(critic.apply(params["critic"], batch.observation, moved)[0])
        return value, {"q_loss": value}

    def sample(params, observation, key):
        noise = jax.random.normal(key, (len(observation), vae.latent_dim))
        action = behaviour(params, observation, noise)
        if not config.shifted:
            return action
        return shift.apply(params["shift"], observation, action)

    improve = stages.Stage("shift", loss, config.lr)
    run = [fit, vae_stage(vae, config.lr), improve]
    return stages.agent(config.batch_size, init_params, run, draw, sample)
