"""BC-CVAE: a conditional variational autoencoder, the behaviour model of BCQ.

Its samples come from latents clipped to [-0.5, 0.5], which the decoder spreads over
what lies between the modes as well.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.studies.bandit import losses, stages
from experiments.studies.bandit.networks import VAE
from jdql.agents.base import NOTHING, Agent, Stages, blank
from jdql.types import Array, DataSpec, Float, Params, PRNGKeyArray

CLIP = 0.5  # of the latents, when sampling


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors'."""

    lr: float = 3e-4
    batch_size: int = 100
    hidden: tuple[int, ...] = (128, 128)

    def tiny(self) -> Any:
        """The same method at the size of a toy."""
        return stages.tiny(self)


def init_vae(vae: VAE, spec: DataSpec, key: PRNGKeyArray) -> Params:
    """The autoencoder's parameters."""
    observation, action = blank(spec)
    return vae.init(key, observation, action, jnp.zeros((1, vae.latent_dim)))


def vae_stage(vae: VAE, lr: float) -> stages.Stage:
    """Improves the autoencoder named "vae"; reads the noise [B, L] `draws.encoder`."""

    def loss(own, params, batch, draws, metrics):
        outputs = vae.apply(own, batch.observation, batch.action, draws.encoder)
        value = losses.vae_loss(batch.action, *outputs)
        return value, {}

    return stages.Stage("vae", loss, lr)


def decode(vae: VAE, params: Params, observation: Array, noise: Array) -> Array:
    """Actions before the tanh, [*B, A], from standard normal noise [*B, L]."""
    latent = jnp.clip(noise, -CLIP, CLIP)
    raw: Any = vae.apply(params, observation, latent, method=VAE.decode)
    return raw


class Draws(NamedTuple):
    """The noise of one update: of the encoder's latents."""

    encoder: Float[Array, "B L"]


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds BC-CVAE."""
    del given
    vae = VAE(spec.action_dim, config.hidden)

    def init_params(key):
        return {"vae": init_vae(vae, spec, key)}

    def draw(key: PRNGKeyArray) -> Draws:
        return Draws(jax.random.normal(key, (config.batch_size, vae.latent_dim)))

    def sample(params, observation, key):
        noise = jax.random.normal(key, (len(observation), vae.latent_dim))
        return jnp.tanh(decode(vae, params["vae"], observation, noise))

    stage = vae_stage(vae, config.lr)
    return stages.agent(config.batch_size, init_params, [stage], draw, sample)
