"""The contract that every system meets: a tuple of pure functions.

A module `jdql.agents.<name>` defines

* `Config`, a frozen dataclass of the system's settings, with a method `tiny` that gives
  the same system at the size of a toy;
* `make(config, spec, given) -> Agent`;
* where it builds on earlier runs, `GIVEN`, the names under which `make` finds them,
  each with the systems that such a run may be of.

Nothing registers it: the launcher resolves the module of `Config`, the contract test
discovers the folder.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp

from jdql.data.dataset import Dataset
from jdql.types import Array, DataSpec, Float, PRNGKeyArray

State = Any  # the system's own TrainState: arrays only
Data = Any  # what batches are drawn from, on the device
Batch = Any
Draws = Any  # every random number of one update, as arrays
Learned = Any  # the part of a TrainState that outlives training
Carry = Any  # what a policy remembers from one plan to the next
Metrics = dict[str, Array]


class Acting(NamedTuple):
    """A policy that sees the last C observations and plans h actions at a time.

    Who calls it carries out the h actions one after another before the next plan.  A
    plan may also be of other rows than actions, of waypoints for instance; then
    `follow` makes an action of each when its turn comes, from what is seen by then.

    Attributes:
      act: `(learned, carry, observations [C, O], key) -> (rows [h, W], carry)`; the
        last observation is the current one, and before the C-th step of an episode the
        first one stands in the place of those that are missing.  The rows are actions,
        W = A, where there is no `follow`.
      reset: `() -> carry` at the start of an episode.
      history: C.
      follow: `(learned, row [W], observation [O]) -> action [A]`, of the current
        observation; None where the rows are actions.
    """

    act: Callable[
        [Learned, Carry, Float[Array, "C O"], PRNGKeyArray],
        tuple[Float[Array, "h W"], Carry],
    ]
    reset: Callable[[], Carry] = tuple
    history: int = 1
    follow: (
        Callable[[Learned, Float[Array, " W"], Float[Array, " O"]], Float[Array, " A"]]
        | None
    ) = None


def _unchanged(dataset: Dataset) -> Data:
    return dataset


class Agent(NamedTuple):
    """Pure functions of one member (seed); the runtime maps them over members.

    Attributes:
      init: `(key) -> state`, a NamedTuple of arrays with a field `step`, an int32 count
        of the updates done.
      sample_batch: `(key, data) -> batch`, on the device.
      draw: `(key) -> draws`, all the noise of one update.
      update_step: `(state, batch, draws) -> (state, metrics)`; metrics are scalars.
      learned: `(state) -> learned`, what acting or a later stage needs.
      prepare: `(dataset) -> data`, once, on the host: labels, returns-to-go.
      acting: the policy; None for a system that has none.
      measure: `(learned, data, key) -> metrics`, held-out numbers of a system, on what
        `prepare` makes of data that it has not trained on; None where there are none.
      model: pure functions of `learned` that a later stage calls, as a NamedTuple of
        the system's own; None where no stage builds on it.
    """

    init: Callable[[PRNGKeyArray], State]
    sample_batch: Callable[[PRNGKeyArray, Data], Batch]
    draw: Callable[[PRNGKeyArray], Draws]
    update_step: Callable[[State, Batch, Draws], tuple[State, Metrics]]
    learned: Callable[[State], Learned]
    prepare: Callable[[Dataset], Data] = _unchanged
    acting: Acting | None = None
    measure: Callable[[Learned, Data, PRNGKeyArray], Metrics] | None = None
    model: Any = None


class Given(NamedTuple):
    """An earlier run as a later stage sees it: its functions, and what it learned."""

    agent: Agent
    learned: Learned


Stages = Mapping[str, Given]
NOTHING: Stages = MappingProxyType({})  # what a system without earlier stages is given

Maker = Callable[[Any, DataSpec, Stages], Agent]


def maker(config: Any) -> Maker:
    """The `make` of the module that a system's settings are defined in."""
    return importlib.import_module(type(config).__module__).make


def required(config: Any) -> Mapping[str, tuple[str, ...]]:
    """The earlier runs that a system builds on: name -> systems that they may be of."""
    module = importlib.import_module(type(config).__module__)
    return vars(module).get("GIVEN", {})


def acts(
    plan: Callable[[Learned, Float[Array, " O"], PRNGKeyArray], Float[Array, " D"]],
    length: int = 1,
) -> Acting:
    """A policy that looks at the current observation alone and remembers nothing.

    Args:
      plan: `(learned, observation [O], key) -> [h A]`, the first action first.
      length: h, the actions of a plan.
    """

    def act(learned: Learned, carry: Carry, observations: Array, key: PRNGKeyArray):
        return plan(learned, observations[-1], key).reshape(length, -1), carry

    return Acting(act)


def followed(
    plan: Callable[[Learned, Float[Array, "C O"], PRNGKeyArray], Float[Array, "h W"]],
    follow: Callable[[Learned, Float[Array, " W"], Float[Array, " O"]], Array],
    length: int,
    history: int = 1,
) -> Acting:
    """A policy that plans rows, and makes an action of each in its turn.

    A row that is the only one of its plan becomes an action at once.

    Args:
      plan: `(learned, observations [C, O], key) -> rows [h, W]`.
      follow: as in `Acting`.
      length: h.
      history: C.
    """

    def act(learned: Learned, carry: Carry, observations: Array, key: PRNGKeyArray):
        rows = plan(learned, observations, key)
        if length > 1:
            return rows, carry
        return follow(learned, rows[0], observations[-1])[None], carry

    return Acting(act, history=history, follow=follow if length > 1 else None)


def blank(spec: DataSpec) -> tuple[Float[Array, "1 O"], Float[Array, "1 A"]]:
    """An observation and an action of zeros, to initialise networks with."""
    return jnp.zeros((1, spec.observation_dim)), jnp.zeros((1, spec.action_dim))


def action_bounds(spec: DataSpec) -> tuple[Float[Array, " A"], Float[Array, " A"]]:
    """The lowest and the highest action, float32."""
    return jnp.array(spec.action_low), jnp.array(spec.action_high)
