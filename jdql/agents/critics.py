"""Losses and steps of critics that several systems have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from jdql.agents.actors import Actor
from jdql.agents.base import Metrics
from jdql.diffusion import reverse
from jdql.networks.mlp import Critic
from jdql.optim import Averaging, Model, descend, follow
from jdql.rl import expectile, targets
from jdql.types import Array, Float, Params, Transition


def smaller_q(critic: Critic) -> Callable[[Params, Array, Array], Array]:
    """Clipped double Q: `(params, observation [*B, O], action [*B, A]) -> [*B]`."""

    def value(params: Params, observation: Array, action: Array) -> Array:
        return targets.clipped_double_q(critic.apply(params, observation, action))

    return value


def sampled_q(
    actor: Actor,
    params: Params,
    critic: Critic,
    critic_params: Params,
    observation: Float[Array, "B O"],
    draws: reverse.ChainDraws,
) -> Float[Array, "M B N"]:
    """Values of N sampled actions for each of B observations.

    Args:
      actor: samples the actions.
      params: its parameters.
      critic: an ensemble of M members.
      critic_params: its parameters.
      observation: of the next states.
      draws: noise of B N rows, those of an observation adjacent.
    """
    count = len(draws.start) // len(observation)
    repeated = jnp.repeat(observation, count, axis=0)
    action = actor.sample(params, repeated, draws)
    q = critic.apply(critic_params, repeated, action)
    return q.reshape(len(q), -1, count)


def double_q_loss(
    params: Params,
    critic: Critic,
    actor: Actor,
    state: Any,
    batch: Transition,
    draws: reverse.ChainDraws,
    gamma: float | Float[Array, ""],
) -> tuple[Float[Array, ""], Metrics]:
    """Both critics regress to r + gamma min_i Q'_i(s', a') (Wang et al. 2023, eq. 4).

    a' is an action of the averaged actor and Q' are the target critics.  With several
    actions a state each Q' takes the largest of its values first (`max_q_backup`).

    Args:
      params: of the critics.
      critic: the twin critic.
      actor: samples a'.
      state: a TrainState whose `actor` and `critic` have averages.
      batch: B transitions.
      draws: noise of the next actions, of B or N B rows.
      gamma: the discount factor, in [0, 1].
    """
    next_q = sampled_q(
        actor,
        state.actor.average,
        critic,
        state.critic.average,
        batch.next_observation,
        draws,
    )
    q = critic.apply(params, batch.observation, batch.action)
    return targets.td_loss(q, batch, targets.max_q_backup(next_q), gamma)


def step_implicit_q(
    losses: expectile.ImplicitQ,
    optimizer: optax.GradientTransformation,
    state: Any,
    batch: Transition,
    tau: float | Float[Array, ""],
) -> tuple[Model, Model, Metrics]:
    """One step of IQL's critics and value, each by the gradient at the old parameters.

    Q regresses to the V from before the step, and the target critics follow the
    critics from before it, as in the code of Park et al. 2025 and Frans et al. 2025.

    Args:
      losses: of the two.
      optimizer: of both.
      state: a TrainState with a `critic`, whose average is its target, and a `value`.
      batch: transitions.
      tau: of the target critics.

    Returns:
      The critics, the value, and metrics.
    """
    value, value_metrics = descend(
        "value",
        optimizer,
        state.value,
        losses.value_loss,
        state.critic.average,
        batch,
    )
    critic, critic_metrics = descend(
        "critic",
        optimizer,
        state.critic,
        losses.critic_loss,
        state.value.params,
        batch,
    )
    critic = follow(critic, Averaging(tau), towards=state.critic.params)
    return critic, value, {**value_metrics, **critic_metrics}
