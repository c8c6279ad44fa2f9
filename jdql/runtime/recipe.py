"""How a system is made, apart from its numbers; and its numbers, apart from that.

A `Recipe` is static: a maker, settings, sizes.  What differs from member to member is
arrays: the float settings of each (`settings`), what it learned, and what earlier runs
learned.  So one compiled program serves all members, and all values of the settings.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdql.agents import base
from jdql.agents.base import Acting, Agent, Carry, Given, Maker
from jdql.config import float_settings
from jdql.data import scaling
from jdql.data.scaling import Scaling
from jdql.runtime import stored
from jdql.types import Array, DataSpec, Float, PRNGKeyArray


class Recipe(NamedTuple):
    """What all members of a run have in common.

    Attributes:
      make: the maker of the system.
      config: its settings; the floats among them are replaced by each member's.
      spec: sizes and bounds of the data as the system sees them, scaled.
      scaling: of the run's data, or one of its shapes.
      given: how the earlier runs were made that this one builds on, by name.
    """

    make: Maker
    config: Any
    spec: DataSpec
    scaling: Scaling
    given: Mapping[str, Recipe] = {}


class Learned(NamedTuple):
    """What a member has learned, with all numbers that it takes to use it.

    Attributes:
      own: `Agent.learned` of its state.
      settings: the float settings of the system.
      scaling: between the environment's scale and the system's.
      given: what the earlier runs learned that it builds on, by name.
    """

    own: Any
    settings: dict[str, Float[Array, ""]]
    scaling: Scaling
    given: dict[str, Learned]


def member_config(config: Any, settings: Mapping[str, Any]) -> Any:
    """A system's settings with one member's values in place, which may be traced."""
    # Not dataclasses.replace: its __init__ may check types, which tracers do not have.
    changed = copy.copy(config)
    for name, value in settings.items():
        object.__setattr__(changed, name, value)
    return changed


def agent(
    recipe: Recipe,
    settings: Mapping[str, Any],
    given: Mapping[str, Learned],
    scaling: Scaling | None = None,
) -> Agent:
    """The pure functions of one member, whose numbers may be traced.

    Args:
      recipe: how its system is made.
      settings: its float settings.
      given: what the earlier runs learned that it builds on.
      scaling: what it was trained with; by default that of the recipe, which training
        has and a checkpoint gives the shapes of alone.
    """
    stages = {
        name: Given(of_learned(earlier, given[name]), given[name].own)
        for name, earlier in recipe.given.items()
    }
    config = member_config(recipe.config, settings)
    return recipe.make(config, _spec(recipe, scaling or recipe.scaling), stages)


def of_learned(recipe: Recipe, learned: Learned) -> Agent:
    """The pure functions of a member that has learned something."""
    return agent(recipe, learned.settings, learned.given, learned.scaling)


def _spec(recipe: Recipe, scaling: Scaling) -> DataSpec:
    return recipe.spec._replace(scaling=scaling)


def outline(recipe: Recipe) -> Agent:
    """The agent for what it is (does it act?), not to be called where it is staged."""
    stages = {n: Given(outline(r), None) for n, r in recipe.given.items()}
    return recipe.make(recipe.config, _spec(recipe, recipe.scaling), stages)


def acting(recipe: Recipe) -> Acting | None:
    """A policy of `Learned`, which sees and acts on the environment's scale.

    The rows of a plan that are no actions stay as the system makes them: nobody but its
    own `follow` reads them.
    """
    plain = outline(recipe).acting
    if plain is None:
        return None

    def own(learned: Learned) -> Any:
        return of_learned(recipe, learned).acting

    def act(
        learned: Learned,
        carry: Carry,
        observations: Float[Array, "C O"],
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "h W"], Carry]:
        scaled = learned.scaling.observation.forward(observations)
        rows, carry = own(learned).act(learned.own, carry, scaled, key)
        actions = plain.follow is None
        return learned.scaling.action.inverse(rows) if actions else rows, carry

    def follow(
        learned: Learned, row: Float[Array, " W"], observation: Float[Array, " O"]
    ) -> Float[Array, " A"]:
        scaled = learned.scaling.observation.forward(observation)
        action = own(learned).follow(learned.own, row, scaled)
        return learned.scaling.action.inverse(action)

    return plain._replace(act=act, follow=None if plain.follow is None else follow)


def untrained(recipe: Recipe, key: PRNGKeyArray) -> Learned:
    """What a member knows before its first update, earlier runs included."""
    given = {name: untrained(r, key) for name, r in recipe.given.items()}
    settings = {
        name: jnp.float32(value)
        for name, value in float_settings(recipe.config).items()
    }
    made = agent(recipe, settings, given)
    return Learned(made.learned(made.init(key)), settings, recipe.scaling, given)


def abstract(recipe: Recipe, members: int) -> Learned:
    """The shapes of what `members` members of such a run have learned."""
    keys = jax.random.split(jax.random.key(0), members)
    return jax.eval_shape(jax.vmap(lambda key: untrained(recipe, key)), keys)


def to_json(recipe: Recipe) -> dict[str, Any]:
    """What `from_json` makes the recipe of again; for the metadata of a checkpoint."""
    return {
        **stored.agent_to_dict(recipe.config),
        "spec": recipe.spec._asdict(),
        "scaling": scaling.describe(recipe.scaling),
        "given": {name: to_json(earlier) for name, earlier in recipe.given.items()},
    }


def from_json(values: Mapping[str, Any]) -> Recipe:
    """The inverse of `to_json`; the scaling has the right shapes and no values.

    Raises:
      ValueError: a setting that this version does not know, or no such system.
    """
    config = stored.agent_from_dict(dict(values))
    return Recipe(
        base.maker(config),
        config,
        spec_from_json(values["spec"]),
        scaling.blank(values["scaling"]),
        {name: from_json(earlier) for name, earlier in values["given"].items()},
    )


def spec_from_json(values: Mapping[str, Any]) -> DataSpec:
    """Sizes and bounds; JSON knows no tuples."""
    bounds = {name: tuple(values[name]) for name in ("action_low", "action_high")}
    return DataSpec(**{**values, **bounds})
