"""Weights of weighted behaviour cloning: how much each action of the data counts.

A policy fitted to the data with weights w(s, a) becomes w times the behaviour policy,
normalised; with w = exp(advantage / temperature) that is the best policy near the data
in the sense of the Kullback-Leibler divergence (Peng et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jdql.types import Array, Float, Params, Transition


def exponential_weight(
    advantage: Float[Array, " B"],
    scale: float | Float[Array, ""],
    maximum: float | Float[Array, ""],
) -> Float[Array, " B"]:
    """min(maximum, exp(scale advantage)), detached.

    Args:
      advantage: Q - V of each sample, in units of value.
      scale: one over the temperature, at least 0; 0 weighs all samples alike.
      maximum: the largest weight, positive; an exponential that overflows becomes it.
    """
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(scale * advantage), maximum))


def awr_weight(
    q: Float[Array, " B"],
    value: Float[Array, " B"],
    inverse_temperature: float | Float[Array, ""] = 3.0,
    maximum: float | Float[Array, ""] = 100.0,
) -> Float[Array, " B"]:
    """min(100, exp(3 (Q - V))), detached (Kostrikov et al. 2022, eq. 7).

    Args:
      q: values of the data's actions.
      value: V of the same observations.
      inverse_temperature: 0 clones; the larger, the greedier.
      maximum: the largest weight.
    """
    return exponential_weight(q - value, inverse_temperature, maximum)


def crr_weight(
    q: Float[Array, " B"],
    sampled_q: Float[Array, "N B"],
    temperature: float | Float[Array, ""] = 1.0,
    maximum: float | Float[Array, ""] = 20.0,
) -> Float[Array, " B"]:
    """min(20, exp((Q - mean Q of the policy) / beta)), detached.

    Critic-regularised regression, exponential, with the mean as the baseline (Wang,
    Novikov et al. 2020, "CRR exp").

    Args:
      q: values of the data's actions.
      sampled_q: values of N actions of the policy in the same observations.
      temperature: beta, positive, in units of value.
      maximum: the largest weight.
    """
    advantage = q - jnp.mean(sampled_q, axis=0)
    return exponential_weight(advantage, 1 / temperature, maximum)


def values(
    value: Callable[[Params, Array, Array], Array],
    params: Params,
    batch: Transition,
    actions: Float[Array, "N B A"],
) -> tuple[Float[Array, " B"], Float[Array, "N B"]]:
    """Values of the data's actions, and of N others in the same states.

    Args:
      value: `(params, observation [*B, O], action [*B, A]) -> [*B]`.
      params: of the critics.
      batch: B transitions.
      actions: such as actions of the policy.
    """
    shape = (*actions.shape[:-1], batch.observation.shape[-1])
    observation = jnp.broadcast_to(batch.observation, shape)
    own = value(params, batch.observation, batch.action)
    return own, value(params, observation, actions)
