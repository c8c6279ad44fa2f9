"""IFQL, implicit flow Q-learning: IDQL with a flow in the place of diffusion.

The baseline of Park, Li & Levine 2025 (arXiv:2502.02538), after Hansen-Estruch et al.
2023.  A flow clones the behaviour, implicit Q-learning learns the critics, and acting
takes the best of several samples.

| paper | here |
|---|---|
| flow matching of the behaviour (Park et al., eq. 1) | `flow.flow_loss` |
| Euler's method | `actors.flowing` |
| losses of V and Q (Kostrikov et al. 2022, eqs. 5, 6) | `expectile.implicit_q` |
| the best of N samples | `selection.greedy` |

As in the authors' code, one step of all networks starts from the same parameters: Q
regresses to the V before the step, the target critics follow the critics before it, and
the online critics choose.
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
from jdql.agents.actors import Actor, ImplicitPolicy
from jdql.agents.base import NOTHING, Agent, Metrics, Stages, blank
from jdql.data.sampling import transitions
from jdql.diffusion import flow
from jdql.networks.layers import XavierDense
from jdql.networks.mlp import (
    MLP,
    Critic,
    VelocityNetwork,
    gelu_critic,
    value_function,
)
from jdql.optim import Model, adam, descend, start
from jdql.rl import expectile, selection
from jdql.types import Array, DataSpec, Float, Int, Params, PRNGKeyArray, Transition


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; defaults are those of the authors' code."""

    lr: float = 3e-4  # actor
    critic_lr: float = 3e-4  # critics and value
    expectile: float = 0.9
    batch_size: int = 256
    action_limit: float = 1 - 1e-5  # of the data's actions, as a share of the bounds
    discount: float = 0.99
    tau: float = 0.005  # target critic
    # flow
    flow_steps: int = 10
    unroll: int = 1  # steps of the flow laid out in a row
    # networks: actor, critics and value, the last two with layer normalisation
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    # acting
    candidates: int = 32
    selection: str = "best"  # or "implicit", the policy whose value V is

    def tiny(self) -> Config:
        """The same system at the size of a toy."""
        small = dataclasses.replace(self, batch_size=32, hidden=(32, 32), flow_steps=5)
        return dataclasses.replace(small, lr=2e-3, critic_lr=2e-3, candidates=16)


class TrainState(NamedTuple):
    """Arrays only; every field is stacked over seeds by the runtime."""

    step: Int[Array, ""]
    actor: Model
    critic: Model  # its average is the target critic
    value: Model


class Draws(NamedTuple):
    """The noise of one update: times of the flow `[B]`, standard normals `[B, A]`."""

    time: Float[Array, " B"]
    noise: Float[Array, "B A"]


class Parts(NamedTuple):
    """What the functions below share."""

    config: Config
    actor: Actor
    critic: Critic  # of two members
    value: MLP
    implicit_q: expectile.ImplicitQ
    actor_optimizer: optax.GradientTransformation
    optimizer: optax.GradientTransformation  # of critics and value


def build(config: Config, spec: DataSpec) -> Parts:
    """The parts of a system; raises ValueError for settings out of range."""
    network = VelocityNetwork(spec.action_dim, config.hidden)
    critic = gelu_critic(config.hidden)
    value = MLP(config.hidden, 1, nn.gelu, XavierDense, norm=True)
    return Parts(
        config,
        actors.flowing(network, spec, config.flow_steps, unroll=config.unroll),
        critic,
        value,
        expectile.implicit_q(
            critic.apply, value_function(value), config.expectile, config.discount
        ),
        adam(config.lr),
        adam(config.critic_lr),
    )


def actor_loss(
    params: Params, parts: Parts, batch: Transition, draws: Draws
) -> tuple[Float[Array, ""], Metrics]:
    """Flow matching of the behaviour."""
    velocity = parts.actor.predict(params, batch.observation)
    bc_loss = flow.flow_loss(velocity, batch.action, draws.time, draws.noise)
    return bc_loss, {"bc_loss": bc_loss}


def init(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> TrainState:
    """Fresh networks; the target critics are copies."""
    actor_key, critic_key, value_key = jax.random.split(key, 3)
    observation, action = blank(spec)
    critic = parts.critic.init(critic_key, observation, action)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        actor=start(parts.actor.init(actor_key), parts.actor_optimizer),
        critic=start(critic, parts.optimizer, averaged=True),
        value=start(parts.value.init(value_key, observation), parts.optimizer),
    )


def draw(parts: Parts, spec: DataSpec, key: PRNGKeyArray) -> Draws:
    """The noise of one update."""
    time_key, noise_key = jax.random.split(key)
    B = parts.config.batch_size
    return Draws(
        time=jax.random.uniform(time_key, (B,)),
        noise=jax.random.normal(noise_key, (B, spec.action_dim)),
    )


def update_step(
    parts: Parts, state: TrainState, batch: Transition, draws: Draws
) -> tuple[TrainState, Metrics]:
    """One step of all networks, each by the gradient at the old parameters."""
    actor, actor_metrics = descend(
        "actor", parts.actor_optimizer, state.actor, actor_loss, parts, batch, draws
    )
    critic, value, critic_metrics = critics.step_implicit_q(
        parts.implicit_q, parts.optimizer, state, batch, parts.config.tau
    )
    new_state = TrainState(state.step + 1, actor, critic, value)
    return new_state, {**actor_metrics, **critic_metrics}


def learned(state: TrainState) -> ImplicitPolicy:
    """What acting needs: actor, online critics, and the value of states."""
    value = state.value.params
    return ImplicitPolicy(state.actor.params, state.critic.params, value)


def make(config: Config, spec: DataSpec, given: Stages = NOTHING) -> Agent:
    """Builds IFQL; raises ValueError for settings out of range."""
    del given
    parts, bind = build(config, spec), functools.partial
    sample = bind(transitions, batch_size=config.batch_size)
    select = selection.of_advantages(config.selection, config.expectile)
    return Agent(
        init=bind(init, parts, spec),
        sample_batch=actors.off_bounds(sample, spec, config.action_limit),
        draw=bind(draw, parts, spec),
        update_step=bind(update_step, parts),
        learned=learned,
        acting=actors.best_advantage(
            config.candidates, parts.actor, parts.critic, parts.value, select
        ),
    )
