"""Acting otherwise than a run was trained to: other samplers, steps, candidates.

The rule: a setting may change after training if it is one of `jdql.config.ACTING`, and
if the arrays that were learned keep their names, shapes and types.  By their names no
network depends on such settings, and no array; the second half makes sure of it.
Everything else belongs to what was trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jdql.config import ACTING, float_settings
from jdql.runtime import recipe as recipes
from jdql.runtime.recipe import Learned, Recipe


def change(
    recipe: Recipe, learned: Learned, settings: Mapping[str, Any]
) -> tuple[Recipe, Learned]:
    """A trained policy with other settings of acting.

    Args:
      recipe: how its system is made.
      learned: by one member, or by several, stacked.
      settings: by name, `sampler`, or `given.planner.sampler` for those of an earlier
        run that it builds on.

    Returns:
      The recipe, and what was learned, with these values in place.

    Raises:
      ValueError: no such setting, one that is not of acting, or a value out of range.
    """
    made, numbers = recipe, learned
    for path, value in settings.items():
        _check(*owner(made, path), path)
        made, numbers = _set(made, numbers, path, value)
    recipes.outline(made)  # refuses what is out of range
    before, after = (recipes.abstract(r, 1) for r in (recipe, made))
    if (before.own, before.given) != (after.own, after.given):
        raise ValueError(
            f"{', '.join(settings)} cannot change after training: the arrays that were "
            "learned would have other shapes; train another run for it"
        )
    return made, numbers


def owner(recipe: Recipe, path: str) -> tuple[Recipe, str]:
    """The system that a setting belongs to, and the setting's name.

    Args:
      recipe: of a run.
      path: see `change`.

    Raises:
      ValueError: the run builds on no earlier one of that name.
    """
    stage, inside = _split(path)
    if not stage:
        return recipe, path
    if stage not in recipe.given:
        earlier = ", ".join(f"given.{name}" for name in recipe.given) or "none"
        raise ValueError(
            f"there is no setting {path!r}: the earlier runs that this one builds on "
            f"are {earlier}"
        )
    return owner(recipe.given[stage], inside)


def _split(path: str) -> tuple[str, str]:
    """The earlier run that a setting is of, "" for the run itself, and what it is."""
    if not path.startswith("given."):
        return "", path
    stage, _, inside = path.removeprefix("given.").partition(".")
    return stage, inside


def _set(
    recipe: Recipe, learned: Learned, path: str, value: Any
) -> tuple[Recipe, Learned]:
    """One setting, of the run itself or of one that it builds on."""
    stage, inside = _split(path)
    if not stage:
        return _set_own(recipe, learned, path, value)
    made, numbers = _set(recipe.given[stage], learned.given[stage], inside, value)
    return (
        recipe._replace(given={**recipe.given, stage: made}),
        learned._replace(given={**learned.given, stage: numbers}),
    )


def _set_own(
    recipe: Recipe, learned: Learned, field: str, value: Any
) -> tuple[Recipe, Learned]:
    """One setting of the run itself; a float is a number of the program."""
    config = dataclasses.replace(recipe.config, **{field: value})
    stack = np.shape(next(iter(learned.settings.values()), ()))
    numbers = {n: v for n, v in learned.settings.items() if n != field}
    if field in float_settings(config):
        numbers[field] = jnp.full(stack, value, jnp.float32)
    return recipe._replace(config=config), learned._replace(settings=numbers)


def _check(recipe: Recipe, field: str, path: str) -> None:
    """Refuses what is no setting of acting."""
    known = {f.name for f in dataclasses.fields(recipe.config)}
    if field not in known:
        raise ValueError(f"there is no setting {path!r}: there are {sorted(known)}")
    if field not in ACTING:
        free = ", ".join(sorted(known & ACTING)) or "none here"
        raise ValueError(
            f"{path} cannot change after training, settings of acting can: {free}; "
            "train another run for it"
        )
