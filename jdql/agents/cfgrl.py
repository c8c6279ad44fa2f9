"""CFGRL: guidance as policy improvement (Frans, Park, Abbeel & Levine 2025).

"Diffusion guidance is a controllable policy improvement operator", arXiv:2505.23458.
One network clones the actions of the data twice over, as they are and given that their
advantage is positive (o = 1).  Guidance between the two draws from

    pi_w(a | s) ~ pi(a | s) p(o = 1 | s, a)^w,

a policy that improves with w, which is chosen when acting: `guidance`.

| paper | here |
|---|---|
| o = 1[A(s, a) >= 0], dropped one time in ten | `labels` |
| the conditional and the unconditional policy | `actor_loss` |
| score_u + w (score_c - score_u) | `sample_action` |
| A = Q - V, the critics of IQL | `expectile.implicit_q` |
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jdql.agents import actors, critics
from jdql.agents.base import NOTHING, Agent, Metrics, Stages, acts, blank
from jdql.data.sampling import transitions
from jdql.diffusion import guidance, losses, reverse, samplers, schedules
from jdql.networks.layers import XavierDense
from jdql.networks.mlp import (
    MLP,
    Critic,
    NoiseNetwork,
    conditioned,
    gelu_critic,
    value_function,
)
from jdql.optim import Model, adam, descend, start
from jdql.rl import expectile
from jdql.types import Array, DataSpec, Float, Int, Params, PRNGKeyArray, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are those of the authors' agent with IQL's critics."""

    # Weight w: 0 clones, 1 is the conditional policy; the authors also play 0.5, 1.25,
    # 1.5, 2 and 3.  It has no part in training.
    guidance: float = 1.0
    threshold: float = 0.0  # advantage from which an action counts as good
    dropout: float = 0.1  # share of actions that are cloned without their label
    lr: float = 3e-4  # actor
    critic_lr: float = 3e-4  # critics and value
    expectile: float = 0.9
    batch_size: int = 1024
    discount: float = 0.99
    tau: float = 0.005  # target critic
    # diffusion
    # Deviation: a diffusion of 16 steps; the authors have a flow and 16 steps of Euler.
    diffusion_steps: int = 16
    schedule: str = "vp"
    variance: str = "posterior"
    unroll: int = 1  # steps of the chain laid out in a row
    # networks
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    step_dim: int = 16
    # acting
    sampler: str = "ancestral"
    sample_steps: int | None = None  # None: diffusion_steps

    def tiny(self) -> Config:
        """The same system at the size of a toy."""
        small = dataclasses.replace(self, batch_size=32, hidden=(32, 32), step_dim=8)
        return dataclasses.replace(small, diffusion_steps=5, lr=2e-3, critic_lr=2e-3)


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Model
    critic: Model  # its average is the target critic
    value: Model


class Draws(NamedTuple):
    """The noise of one update."""

    k: Int[Array, " B"]  # diffusion steps
    noise: Float[Array, "B A"]  # standard normal
    coin: Float[Array, " B"]  # uniform; below `dropout` the label is dropped


DROPPED, BAD, GOOD = range(3)  # what the actor may be told of an action


def labels(
    advantage: Float[Array, " B"],
    threshold: float | Float[Array, ""],
    dropped: Array,
) -> Int[Array, " B"]:
    """GOOD where the advantage reaches the threshold, else BAD, or DROPPED."""
    label = jnp.where(advantage >= threshold, GOOD, BAD)
    return jnp.where(dropped, DROPPED, label)


def labelled(
    observation: Float[Array, "*B O"], label: Int[Array, "*B"]
) -> Float[Array, "*B C"]:
    """The observation with its label behind it, as three numbers of which one is 1.

    Each of the three numbers has a row of weights in the actor's first layer, so that a
    label is a learned embedding, the dropped one included.
    """
    return jnp.concatenate([observation, jax.nn.one_hot(label, 3)], axis=-1)


class Parts(NamedTuple):
    """What the functions below share."""

    config: Config
    schedule: schedules.Schedule  # of the K diffusion steps
    actor: NoiseNetwork  # of observations that are `labelled`
    sampler: samplers.Sampler
    critic: Critic  # of two members
    value: MLP
    implicit_q: expectile.ImplicitQ
    actor_optimizer: optax.GradientTransformation
    optimizer: optax.GradientTransformation  # of critics and value


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts of a system; raises ValueError for settings out of range."""
    schedule = schedules.make_schedule(config.schedule, config.diffusion_steps)
    critic = gelu_critic(config.hidden)
    value = MLP(config.hidden, 1, nn.gelu, XavierDense, norm=True)
    return Parts(
        config,
        schedule,
        NoiseNetwork(spec.action_dim, config.hidden, config.step_dim),
        actors.acting_sampler(config, spec, schedule),
        critic,
        value,
        expectile.implicit_q(
            critic.apply, value_function(value), config.expectile, config.discount
        ),
        adam(config.lr),
        adam(config.critic_lr),
    )


def advantage(parts: Parts, state: TrainState, batch: Transition) -> Float[Array, " B"]:
    """Q - V of the data's actions, by the smaller critic."""
    q = critics.smaller_q(parts.critic)(
        state.critic.params, batch.observation, batch.action
    )
    return q - value_function(parts.value)(state.value.params, batch.observation)


def actor_loss(
    params: Params, parts: Parts, state: TrainState, batch: Transition, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """Clones the data's actions, each with its label or without one."""
    config, gain = parts.config, advantage(parts, state, batch)
    label = labels(gain, config.threshold, draws.coin < config.dropout)
    inputs = labelled(batch.observation, label)
    predict = conditioned(parts.actor, params, inputs)
    bc_loss = losses.denoising_loss(
        parts.schedule, predict, batch.action, draws.k, draws.noise
    )
    good = jnp.mean(gain >= config.threshold)
    return bc_loss, {"bc_loss": bc_loss, "advantage": jnp.mean(gain), "good": good}


def sample_action(
    parts: Parts,
    params: Params,
    observation: Float[Array, "B O"],
    draws: reverse.ChainDraws,
) -> Float[Array, "B A"]:
    """Actions of the policy that improves with `guidance`."""
    label = jnp.array([[DROPPED], [GOOD]])
    both = jnp.stack([observation, observation])
    inputs = labelled(both, jnp.broadcast_to(label, both.shape[:-1]))
    # One call of the network gives the estimates without and with the label.
    guide = guidance.classifier_free_stacked(parts.config.guidance)
    predict = conditioned(parts.actor, params, inputs)
    return parts.sampler.sample(predict, draws, guide=guide)


def init(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> TrainState:
    """Fresh networks; the target critics are copies."""
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    observation, action = blank(spec)
    inputs = labelled(observation, jnp.zeros(1, int))
    actor = parts.actor.init(actor_key, action, jnp.zeros((), int), inputs)
    critic = parts.critic.init(critic_key, observation, action)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        actor=start(actor, parts.actor_optimizer),
        critic=start(critic, parts.optimizer, averaged=True),
        value=start(parts.value.init(value_key, observation), parts.optimizer),
    )


def draw(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> Draws:
    """The noise of one update."""
    B, K = parts.config.batch_size, parts.config.diffusion_steps
    k_key, noise_key, coin_key = jax.random.split(key, 3)
    return Draws(
        k=jax.random.randint(k_key, (B,), 0, K),
        noise=jax.random.normal(noise_key, (B, spec.action_dim)),
        coin=jax.random.uniform(coin_key, (B,)),
    )


def update_step(
    parts: Parts, state: TrainState, batch: Transition, draws: Draws
) -> tuple[TrainState, Metrics]:
    """One step of all networks, each by the gradient at the old parameters."""
    optimizer = parts.actor_optimizer
    actor, actor_metrics = descend(
        "actor", optimizer, state.actor, actor_loss, parts, state, batch, draws
    )
    critic, value, critic_metrics = critics.step_implicit_q(
        parts.implicit_q, parts.optimizer, state, batch, parts.config.tau
    )
    new_state = TrainState(state.step + 1, actor, critic, value)
    return new_state, {**actor_metrics, **critic_metrics}


def learned(state: TrainState) -> Params:
    """What acting needs: the actor."""
    return state.actor.params


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds CFGRL; raises ValueError for settings out of range."""
    del given
    parts, bind = build(config, spec), functools.partial

    def plan(learned: Params, observation: Float[Array, " O"], key: PRNGKeyArray):
        draws = reverse.draw_chain(key, parts.sampler.draws, (1, spec.action_dim))
        return sample_action(parts, learned, observation[None], draws)

    return Agent(
        init=bind(init, parts, spec),
        sample_batch=bind(transitions, batch_size=config.batch_size),
        draw=bind(draw, parts, spec),
        update_step=bind(update_step, parts),
        learned=learned,
        acting=acts(plan),
    )
