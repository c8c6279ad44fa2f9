"""What a plan of states is worth: two ways to learn it, for systems that choose plans.

"plan" is a transformer that reads a whole plan and learns the return that follows its
first state.  "state" is V(s), learned by temporal differences; a plan is worth the sum
of V over its states behind the first.  Both read clean plans, not noisy ones.

Diffusion Veteran (Lu et al. 2025): its authors' code has the first in mazes and in the
kitchen, the second in locomotion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdql.checks import one_of
from jdql.data.dataset import Dataset
from jdql.data.episodes import returns_to_go
from jdql.networks.dit import SequenceValue
from jdql.networks.mlp import MLP, value_function
from jdql.optim import Averaging, Metrics, Model, adam, descend, follow, start
from jdql.rl import targets
from jdql.types import Array, Float, Int, Params, PRNGKeyArray, Transition


class Evidence(NamedTuple):
    """What values learn from."""

    plan: Float[Array, "B H S"]
    label: Float[Array, " B"]  # the return from its first state on
    transition: Transition  # of the same S numbers


def unit_returns(
    dataset: Dataset, discount: float, penalty: float, arrived: Any = None
) -> Float[np.ndarray, " N"]:
    """The returns that follow every transition, their least and greatest at -1 and 1.

    Args:
      dataset: on the host.
      discount: of `returns_to_go`, like the penalty.
      penalty: of a true end.
      arrived: where rewards are above 0 at a goal alone, whether each transition lies
        behind the arrival there, [N]: the return is then 1, and discount^d before it,
        d being the steps up to the arrival.

    Raises:
      ValueError: all are alike.
    """
    # Deviation: the penalty is added to the reward of an end; the authors' replaces it.
    # Behind an end nothing is paid; their kitchen goes on paying the last reward.
    if arrived is not None:
        first: Any = np.float32((np.asarray(dataset.reward) > 0) & ~arrived)
        ahead = returns_to_go(dataset._replace(reward=first), discount)
        returns = np.where(arrived, 1.0, ahead)
    else:
        returns = returns_to_go(dataset, discount, penalty=penalty)
    low, high = float(returns.min()), float(returns.max())
    if not high > low:
        raise ValueError(
            f"plans are chosen by their returns, but all those of the data are {low:g}:"
            " take data with different rewards"
        )
    return (2 * (returns - low) / (high - low) - 1).astype(np.float32)


class PlanValue(NamedTuple):
    """A way to learn what plans are worth.

    Attributes:
      network: of whole plans or of states.
      loss: `(params, average, evidence) -> (loss, metrics)`.
      score: `(params, plans [*B, H, S]) -> [*B]`.
      optimizer: of the network.
      target: the rule of its target network, which is its average; None without one.
      updates: in which it learns; None: all.
    """

    network: nn.Module
    loss: Callable[[Params, Params, Evidence], tuple[Array, Metrics]]
    score: Callable[[Params, Array], Array]
    optimizer: optax.GradientTransformation
    target: Averaging | None
    updates: int | None

    def init(self, key: PRNGKeyArray, plan: Float[Array, "*B H S"]) -> Model:
        """A fresh network for plans like this one."""
        params = self.network.init(key, plan)
        return start(params, self.optimizer, averaged=self.target is not None)

    def update(
        self, step: Int[Array, ""], old: Model, evidence: Evidence
    ) -> tuple[Model, Metrics]:
        """One step of the network, while it learns, and of its target network."""
        inputs = old.average, evidence
        new, metrics = descend("value", self.optimizer, old, self.loss, *inputs)
        new = new if self.target is None else follow(new, self.target)
        if self.updates is None:
            return new, metrics
        learns = step < self.updates
        return jax.tree.map(lambda n, o: jnp.where(learns, n, o), new, old), metrics


def make(config: Any) -> PlanValue:
    """The value that settings name.

    Args:
      config: with the fields `value`, "plan" or "state"; `value_lr` and
        `value_updates`; for "plan" `width`, `heads`, `value_depth` and `decay_steps`;
        for "state" `value_hidden`, `discount` and `tau`.

    Raises:
      ValueError: there is no such value.
    """
    return one_of("value", config.value, {"plan": _of_plans, "state": _of_states})(
        config
    )


def _of_plans(config: Any) -> PlanValue:
    """mean (J(tau) - R)^2, R being the return from the first state on."""
    network = SequenceValue(config.width, config.heads, config.value_depth)

    def loss(params: Params, average: Params, given: Evidence) -> tuple[Array, Metrics]:
        del average
        value = network.apply(params, given.plan)
        metrics = {"value_mean": jnp.mean(value), "return_mean": jnp.mean(given.label)}
        return jnp.mean(jnp.square(value - given.label)), metrics

    optimizer = adam(config.value_lr, decay_steps=config.decay_steps)
    return PlanValue(
        network, loss, network.apply, optimizer, None, config.value_updates
    )


def _of_states(config: Any) -> PlanValue:
    """mean (V(s) - r - discount mask V'(s'))^2, V' being the target network."""
    # Deviation: the authors normalise layers before the activation, not behind it.
    network = MLP(config.value_hidden, 1, norm=True)
    v = value_function(network)

    def loss(params: Params, average: Params, given: Evidence) -> tuple[Array, Metrics]:
        step = given.transition
        following = v(average, step.next_observation)
        target = targets.td_target(step.reward, step.mask, following, config.discount)
        value = v(params, step.observation)
        return jnp.mean(jnp.square(value - target)), {"value_mean": jnp.mean(value)}

    def score(params: Params, plans: Array) -> Array:
        return v(params, plans[..., 1:, :]).sum(axis=-1)

    rule, optimizer = Averaging(config.tau), adam(config.value_lr)
    return PlanValue(network, loss, score, optimizer, rule, config.value_updates)
