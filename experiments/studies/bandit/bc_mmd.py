"""BC-MMD: a squashed Gaussian policy matched to the behaviour by MMD, as in BEAR.

The behaviour is an autoencoder's; samples of both are compared before the hyperbolic
tangent, with a Laplacian kernel that is wide against them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.studies.bandit import losses, stages
from experiments.studies.bandit.bc_cvae import decode, init_vae, vae_stage
from experiments.studies.bandit.networks import VAE, Gaussian
from jdql.agents.base import NOTHING, Agent, Stages, blank
from jdql.types import Array, DataSpec, Float, Params, PRNGKeyArray, Transition

CLIP = 0.5  # of the policy's noise in the comparison, not when it acts


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors'."""

    lr: float = 3e-4
    batch_size: int = 100
    hidden: tuple[int, ...] = (128, 128)
    samples: int = 10  # compared for each observation
    sigma: float = losses.SIGMA

    def tiny(self) -> Any:
        """The same method at the size of a toy."""
        return stages.tiny(self)


class Draws(NamedTuple):
    """The noise of one update; N is the number of samples compared.

    Attributes:
      encoder: of the latents that the autoencoder learns from.
      behaviour: latents of the behaviour's samples.
      policy: of the policy's samples.
    """

    encoder: Float[Array, "B L"]
    behaviour: Float[Array, "B N L"]
    policy: Float[Array, "B N A"]


def init_params(
    vae: VAE, actor: Gaussian, spec: DataSpec, key: PRNGKeyArray
) -> stages.ByName:
    """The parameters of the autoencoder and of the policy."""
    vae_key, actor_key = jax.random.split(key)
    return {
        "vae": init_vae(vae, spec, vae_key),
        "actor": actor.init(actor_key, blank(spec)[0]),
    }


def draw(config: Config, vae: VAE, key: PRNGKeyArray) -> Draws:
    """The noise of one update, standard normal."""
    B, N = config.batch_size, config.samples
    keys = jax.random.split(key, 3)
    return Draws(
        encoder=jax.random.normal(keys[0], (B, vae.latent_dim)),
        behaviour=jax.random.normal(keys[1], (B, N, vae.latent_dim)),
        policy=jax.random.normal(keys[2], (B, N, vae.action_dim)),
    )


def mmd(
    config: Config,
    vae: VAE,
    actor: Gaussian,
    own: Params,
    params: stages.ByName,
    batch: Transition,
    draws: Any,
) -> Float[Array, ""]:
    """MMD of the policy `own` to the behaviour, averaged over the batch."""
    observation = jnp.broadcast_to(
        batch.observation[:, None],
        (*draws.behaviour.shape[:2], batch.observation.shape[-1]),
    )
    behaviour = decode(vae, params["vae"], observation, draws.behaviour)
    mean, log_std = gaussian(actor, own, batch.observation)
    noise = jnp.clip(draws.policy, -CLIP, CLIP)
    policy = mean[:, None] + jnp.exp(log_std)[:, None] * noise
    return jnp.mean(losses.laplacian_mmd(behaviour, policy, config.sigma))


def gaussian(
    network: Gaussian, params: Params, observation: Array
) -> tuple[Array, Array]:
    """Mean and log standard deviation [B, A] before the tanh; not clamped."""
    outputs: Any = network.apply(params, observation)
    return outputs


def squashed(
    actor: Gaussian, params: Params, observation: Array, noise: Array
) -> Array:
    """The policy's actions [B, A] in (-1, 1), from standard normal noise [B, A]."""
    mean, log_std = gaussian(actor, params, observation)
    return jnp.tanh(mean + jnp.exp(log_std) * noise)


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds BC-MMD."""
    del given
    vae = VAE(spec.action_dim, config.hidden)
    actor = Gaussian(spec.action_dim, config.hidden)

    def loss(own, params, batch, draws, metrics):
        value = mmd(config, vae, actor, own, params, batch, draws)
        return value, {"mmd": value}

    def sample(params, observation, key):
        noise = jax.random.normal(key, (len(observation), spec.action_dim))
        return squashed(actor, params["actor"], observation, noise)

    return stages.agent(
        config.batch_size,
        lambda key: init_params(vae, actor, spec, key),
        [vae_stage(vae, config.lr), stages.Stage("actor", loss, config.lr)],
        lambda key: draw(config, vae, key),
        sample,
    )
