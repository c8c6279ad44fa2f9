"""Diffusion behaviour cloning: the policy of Diffusion-QL without a critic.

| paper (Wang, Hunt & Zhou, ICLR 2023) | here |
|---|---|
| eq. 1, the reverse chain as policy pi(a | s) | `actors.diffusion` |
| eq. 2, L_d, the behaviour-cloning loss | `actor_loss` |

As in the authors' code (`--algo bc`): no averaged actor, no clipping of gradients, and
one sample when acting, since there is no critic to choose by.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdql.agents import actors
from jdql.agents.actors import Actor
from jdql.agents.base import NOTHING, Agent, Metrics, Stages, acts
from jdql.data.sampling import transitions
from jdql.diffusion import losses, schedules
from jdql.optim import Model, adam, descend, start
from jdql.types import Array, DataSpec, Float, Int, Params, PRNGKeyArray, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are the authors'."""

    lr: float = 3e-4
    decay_steps: int | None = None  # the rate falls to 0 as half a cosine; None: stays
    grad_norm: float | None = None  # the authors do not clip
    batch_size: int = 256
    # diffusion
    diffusion_steps: int = 5
    schedule: str = "vp"
    variance: str = "posterior"  # or "beta", the paper's text
    unroll: int = 1  # steps of the chain laid out in a row
    # networks
    hidden: tuple[int, ...] = (256, 256, 256)
    step_dim: int = 16
    # acting
    sampler: str = "ancestral"
    sample_steps: int | None = None  # None: diffusion_steps

    def tiny(self) -> Config:
        """The same system at the size of a toy."""
        small = dataclasses.replace(self, batch_size=64, hidden=(32, 32), step_dim=8)
        short = dataclasses.replace(small, diffusion_steps=5, schedule="vp")
        return dataclasses.replace(short, sample_steps=None, lr=2e-3)


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Model


class Draws(NamedTuple):
    """The noise of one update: diffusion steps `[B]` and standard normals `[B, A]`."""

    k: Int[Array, " B"]
    noise: Float[Array, "B A"]


class Behaviour(NamedTuple):
    """What a later stage may do with the cloned behaviour; `learned` is its parameters.

    Attributes:
      schedule: of the diffusion.
      actor: pure functions of `learned`.
    """

    schedule: schedules.Schedule
    actor: Actor


class Parts(NamedTuple):
    """What the functions below share."""

    config: Config
    schedule: schedules.Schedule  # of the K diffusion steps
    actor: Actor
    optimizer: optax.GradientTransformation


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts of a system; raises ValueError for settings out of range."""
    schedule = schedules.make_schedule(config.schedule, config.diffusion_steps)
    actor = actors.noise_mlp(config, spec, schedule)
    optimizer = adam(config.lr, config.grad_norm, config.decay_steps)
    return Parts(config, schedule, actor, optimizer)


def actor_loss(
    params: Params, parts: Parts, batch: Transition, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """Eq. 2: predict the noise in the data's actions."""
    predict = parts.actor.predict(params, batch.observation)
    bc_loss = losses.denoising_loss(
        parts.schedule, predict, batch.action, draws.k, draws.noise
    )
    return bc_loss, {"bc_loss": bc_loss}


def init(parts: Parts, key: PRNGKeyArray) -> TrainState:
    """A fresh network."""
    actor = start(parts.actor.init(key), parts.optimizer)
    return TrainState(jnp.zeros((), jnp.int32), actor)


def draw(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> Draws:
    """The noise of one update."""
    k_key, noise_key = jax.random.split(key)
    B, K = parts.config.batch_size, parts.config.diffusion_steps
    return Draws(
        k=jax.random.randint(k_key, (B,), 0, K),
        noise=jax.random.normal(noise_key, (B, spec.action_dim)),
    )


def update_step(
    parts: Parts, state: TrainState, batch: Transition, draws: Draws
) -> tuple[TrainState, Metrics]:
    """One step down the cloning loss."""
    inputs = parts, batch, draws
    actor, metrics = descend("actor", parts.optimizer, state.actor, actor_loss, *inputs)
    return TrainState(state.step + 1, actor), metrics


def learned(state: TrainState) -> Params:
    """The actor's parameters."""
    return state.actor.params


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds diffusion cloning; raises ValueError for settings out of range."""
    del given
    parts, bind = build(config, spec), functools.partial
    return Agent(
        init=bind(init, parts),
        sample_batch=bind(transitions, batch_size=config.batch_size),
        draw=bind(draw, parts, spec),
        update_step=bind(update_step, parts),
        learned=learned,
        acting=acts(parts.actor.propose),
        model=Behaviour(parts.schedule, parts.actor),
    )
