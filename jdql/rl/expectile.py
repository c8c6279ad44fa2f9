"""Expectile regression: the critics of implicit Q-learning (IQL).

IQL learns without an action outside the data (Kostrikov, Nair & Levine 2022):

    V(s)    minimises E |tau - 1[Q(s, a) < V(s)]| (Q(s, a) - V(s))^2     (eq. 5)
    Q(s, a) minimises E (r + gamma mask V(s') - Q(s, a))^2               (eq. 6)

with a from the data and Q in eq. 5 the smaller of two target critics.  Eq. 5 is
`value_loss`; eq. 6 is `targets.critic_loss` of `targets.td_target`; `implicit_q` binds
both to networks.  V is the tau-expectile of Q under the behaviour policy: its mean at
tau = 1/2, its maximum as tau goes to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jdql.rl.targets import clipped_double_q, td_loss
from jdql.types import Array, Float, Transition


def expectile_weight(
    error: Float[Array, "*B"], expectile: float | Float[Array, ""]
) -> Float[Array, "*B"]:
    """|tau - 1[error < 0]|: tau where Q is at least V, 1 - tau where it is below.

    Up to a factor, also the density, relative to the behaviour policy, of the policy
    whose mean value V is (Hansen-Estruch et al. 2023, section 4).

    Args:
      error: Q - V.
      expectile: tau, in (0, 1).
    """
    return jnp.abs(expectile - (error < 0))


def expectile_loss(
    error: Float[Array, " B"], expectile: float | Float[Array, ""]
) -> Float[Array, ""]:
    """mean of |tau - 1[error < 0]| error^2 (Kostrikov et al. 2022, eq. 5).

    Args:
      error: Q - V, of the target minus what is learned.
      expectile: tau, in (0, 1); above one half, V leans to the larger values of Q.

    Returns:
      The scalar loss.
    """
    return jnp.mean(expectile_weight(error, expectile) * jnp.square(error))


def value_loss(
    target_q: Float[Array, "M B"],
    value: Float[Array, " B"],
    expectile: float | Float[Array, ""],
) -> Float[Array, ""]:
    """Expectile loss of V against the smallest target critic (eq. 5).

    Args:
      target_q: target critics at the data's actions, with no gradient through them.
      value: V of the same observations.
      expectile: tau, in (0, 1).

    Returns:
      The scalar loss.
    """
    return expectile_loss(clipped_double_q(target_q) - value, expectile)


class ImplicitQ(NamedTuple):
    """The two losses of implicit Q-learning; each `(params, ...) -> (loss, metrics)`.

    Attributes:
      value_loss: `(value params, target critic params, batch)`, eq. 5.
      critic_loss: `(critic params, value params, batch)`, eq. 6.
    """

    value_loss: Callable[..., tuple[Array, dict[str, Array]]]
    critic_loss: Callable[..., tuple[Array, dict[str, Array]]]


def implicit_q(
    q_of: Callable[[Any, Array, Array], Array],
    v_of: Callable[[Any, Array], Array],
    expectile: float | Float[Array, ""],
    gamma: float | Float[Array, ""],
    over_critics: Callable[[Array], Array] = jnp.sum,
) -> ImplicitQ:
    """Implicit Q-learning with given networks.

    Args:
      q_of: `(params, observation [B, O], action [B, A]) -> [M, B]`.
      v_of: `(params, observation [B, O]) -> [B]`.
      expectile: tau, in (0, 1).
      gamma: the agent's discount factor, in [0, 1].
      over_critics: sums the errors of the M critics up, or takes their mean.
    """

    def of_value(params: Any, target_critic: Any, batch: Transition):
        q = q_of(target_critic, batch.observation, batch.action)
        return value_loss(q, v_of(params, batch.observation), expectile), {}

    def of_critic(params: Any, value: Any, batch: Transition):
        next_value = v_of(value, batch.next_observation)
        q = q_of(params, batch.observation, batch.action)
        loss, metrics = td_loss(q, batch, next_value, gamma, over_critics)
        return loss, {**metrics, "v_mean": jnp.mean(next_value)}

    return ImplicitQ(of_value, of_critic)
