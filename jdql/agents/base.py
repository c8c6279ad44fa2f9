"""The contract that every agent meets: a tuple of pure functions.

A module `jdql.agents.<name>` defines `Config`, a frozen dataclass, and
`make(config, spec) -> Agent`.  Nothing registers it: the launcher resolves the module
of `Config`, the contract test discovers the folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jdql.data.dataset import Dataset
from jdql.data.scaling import Scaling
from jdql.types import Array, DataSpec, Float, PRNGKeyArray

State = Any  # the agent's own TrainState: arrays only
Batch = Any
Draws = Any  # every random number of one update, as arrays
Policy = Any  # the part of a TrainState that acting needs
Carry = Any  # what acting remembers between environment steps
Metrics = dict[str, Array]


class Agent(NamedTuple):
    """Pure functions of one member (seed); the runtime maps them over members.

    Attributes:
      init: `(key) -> state`.
      sample_batch: `(key, dataset) -> batch`.
      draw: `(key) -> draws`, all the noise of one update.
      update_step: `(state, batch, draws) -> (state, metrics)`; metrics are scalars.
      policy: `(state) -> policy`, the part that is saved for acting.
      reset: `() -> carry` at the start of an episode.
      act: `(policy, carry, observation [O], key) -> (action [A], carry)`.

    Every state has a field `step`, an int32 count of the updates done.
    """

    init: Callable[[PRNGKeyArray], State]
    sample_batch: Callable[[PRNGKeyArray, Dataset], Batch]
    draw: Callable[[PRNGKeyArray], Draws]
    update_step: Callable[[State, Batch, Draws], tuple[State, Metrics]]
    policy: Callable[[State], Policy]
    reset: Callable[[], Carry]
    act: Callable[
        [Policy, Carry, Float[Array, " O"], PRNGKeyArray],
        tuple[Float[Array, " A"], Carry],
    ]


class Learner(NamedTuple):
    """An agent without a policy; see `Agent` for the fields."""

    init: Callable[[PRNGKeyArray], State]
    sample_batch: Callable[[PRNGKeyArray, Dataset], Batch]
    draw: Callable[[PRNGKeyArray], Draws]
    update_step: Callable[[State, Batch, Draws], tuple[State, Metrics]]


Maker = Callable[[Any, DataSpec], Agent]


class ScaledPolicy(NamedTuple):
    """A policy and the scaling of the data that it was trained on."""

    scaling: Scaling
    policy: Policy


def scaled(agent: Agent, scaling: Scaling) -> Agent:
    """The agent that acts in the environment though it learns from scaled data.

    Args:
      agent: an agent whose dataset holds scaled observations and actions.
      scaling: what they were scaled by.

    Returns:
      An agent whose policy is a `ScaledPolicy`, so that it is saved with its scaling.
    """

    def policy(state: State) -> ScaledPolicy:
        return ScaledPolicy(scaling, agent.policy(state))

    def act(policy: ScaledPolicy, carry: Carry, observation, key):
        observation = policy.scaling.observation.forward(observation)
        action, carry = agent.act(policy.policy, carry, observation, key)
        return policy.scaling.action.inverse(action), carry

    return agent._replace(policy=policy, act=act)


def no_carry() -> tuple[()]:
    """The `reset` of an agent that remembers nothing between environment steps."""
    return ()


def action_bounds(spec: DataSpec) -> tuple[Float[Array, " A"], Float[Array, " A"]]:
    """The lowest and the highest action, float32."""
    return jnp.array(spec.action_low), jnp.array(spec.action_high)
