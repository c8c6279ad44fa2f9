"""QL-MMD: Q improvement under a bound on the MMD to the behaviour: BEAR on the bandit.

A Lagrange multiplier holds the discrepancy near its bound.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.studies.bandit import bc_mmd, stages
from experiments.studies.bandit.bc_cvae import vae_stage
from experiments.studies.bandit.networks import VAE, Gaussian
from jdql.agents.base import NOTHING, Agent, Stages, blank
from jdql.rl.improvement import normalised_q_loss
from jdql.types import Array, DataSpec, Float, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Config(bc_mmd.Config):
    """Settings; defaults are the authors'."""

    eta: float = 1.0  # weight of the Q term: theirs is 1 here, unlike the others' 2.5
    critic_hidden: tuple[int, ...] = (128, 128, 128)
    bound: float = 0.05  # on the MMD
    multiplier_lr: float = 1e-3
    log_multiplier: tuple[float, float] = (-5.0, 10.0)  # its range


class Draws(NamedTuple):
    """The noise of one update: of the comparison, and as in QL-MLE."""

    encoder: Float[Array, "B L"]
    behaviour: Float[Array, "B N L"]
    policy: Float[Array, "B N A"]
    action: Float[Array, "B A"]
    coin: Float[Array, ""]


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds QL-MMD."""
    del given
    vae = VAE(spec.action_dim, config.hidden)
    actor = Gaussian(spec.action_dim, config.hidden)
    critic, fit = stages.critic_stage(config.critic_hidden, config.lr)

    def init_params(key):
        policy_key, critic_key, multiplier_key = jax.random.split(key, 3)
        return bc_mmd.init_params(vae, actor, spec, policy_key) | {
            "critic": critic.init(critic_key, *blank(spec)),
            "log_multiplier": jax.random.normal(multiplier_key),
        }

    def draw(key: PRNGKeyArray) -> Draws:
        comparison_key, action_key, coin_key = jax.random.split(key, 3)
        shape = (config.batch_size, spec.action_dim)
        return Draws(
            *bc_mmd.draw(config, vae, comparison_key),
            action=jax.random.normal(action_key, shape),
            coin=jax.random.uniform(coin_key),
        )

    def improve(own, params, batch, draws, metrics):
        mmd = bc_mmd.mmd(config, vae, actor, own, params, batch, draws)
        action = bc_mmd.squashed(actor, own, batch.observation, draws.action)
        q: Any = critic.apply(params["critic"], batch.observation, action)
        q_loss = normalised_q_loss(q, draws.coin > 0.5)
        value = jnp.exp(params["log_multiplier"]) * mmd + config.eta * q_loss
        return value, {"mmd": mmd, "q_loss": q_loss}

    def tighten(own, params, batch, draws, metrics):
        multiplier = jnp.exp(own)
        # Downhill on the negative: the multiplier grows while the bound is exceeded.
        return -multiplier * (metrics["mmd"] - config.bound), {"multiplier": multiplier}

    def sample(params, observation, key):
        noise = jax.random.normal(key, (len(observation), spec.action_dim))
        return bc_mmd.squashed(actor, params["actor"], observation, noise)

    run = [
        vae_stage(vae, config.lr),
        fit,
        stages.Stage("actor", improve, config.lr),
        stages.Stage(
            "log_multiplier",
            tighten,
            config.multiplier_lr,
            lambda value: jnp.clip(value, *config.log_multiplier),
        ),
    ]
    return stages.agent(config.batch_size, init_params, run, draw, sample)
