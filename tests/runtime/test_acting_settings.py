"""Which settings a trained policy may act with, and what they then do."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.launch import acting
from experiments.launch.overrides import Override
from jdql.agents import base, decision_diffuser, diffuser, diffuser_guided
from jdql.config import ACTING
from jdql.data.scaling import Affine, Scaling
from jdql.runtime import acting_settings, recipe
from jdql.types import DataSpec

SPEC = DataSpec(3, 2, (-1.0,) * 2, (1.0,) * 2)


def recipe_of(config, **given) -> recipe.Recipe:
    sides = (Affine(np.zeros(n, np.float32), np.ones(n, np.float32)) for n in (3, 2))
    return recipe.Recipe(base.maker(config), config, SPEC, Scaling(*sides), given)


PLAN = recipe_of(decision_diffuser.Config().tiny())
GUIDED = recipe_of(
    diffuser_guided.Config().tiny(), planner=recipe_of(diffuser.Config().tiny())
)


pytestmark = pytest.mark.usefixtures("all_unoptimised")


@pytest.fixture(scope="module")
def plan(all_unoptimised):
    return recipe.untrained(PLAN, jax.random.key(0))


@pytest.fixture(scope="module")
def guided(all_unoptimised):
    return recipe.untrained(GUIDED, jax.random.key(0))


def test_numbers_and_program_change_and_what_was_learned_stays(plan):
    settings = {"target_return": 0.25, "sampler": "ddim", "sample_steps": 2}
    made, learned = acting_settings.change(PLAN, plan, settings)
    assert dataclasses.replace(PLAN.config, **settings) == made.config
    assert float(learned.settings["target_return"]) == 0.25
    others = {n: v for n, v in learned.settings.items() if n != "target_return"}
    expected = {n: v for n, v in plan.settings.items() if n != "target_return"}
    assert others == expected
    chex.assert_trees_all_equal(learned.own, plan.own)


def test_every_member_of_a_stack_changes(plan):
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), plan)
    _, learned = acting_settings.change(PLAN, stacked, {"guidance": 2.0})
    np.testing.assert_array_equal(learned.settings["guidance"], [2.0, 2.0, 2.0])


def test_an_earlier_runs_settings_change_the_plan(guided):
    """Two more steps are handed out, and a chain of fewer steps plans otherwise."""
    settings = {"given.planner.execute": 3, "given.planner.sample_steps": 4}
    made, learned = acting_settings.change(GUIDED, guided, settings)
    assert made.config == GUIDED.config
    inputs = jnp.zeros((1, 3)), jax.random.key(1)
    before, _ = recipe.acting(GUIDED).act(guided, (), *inputs)
    after, _ = recipe.acting(made).act(learned, (), *inputs)
    assert (before.shape, after.shape) == ((1, 2), (3, 2))
    assert not np.allclose(before[0], after[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.1}, "lr cannot change after training"),
        ({"given.planner.dim": 8}, r"given.planner.dim cannot change after training"),
        ({"given.value.sampler": "ddim"}, "builds on are given.planner"),
        ({"smpler": "ddim"}, "there is no setting 'smpler'"),
        ({"candidates": 0}, "candidates must be at least 1"),
        ({"given.planner.sampler": "dim"}, "sampler must be one of"),
    ],
)
def test_what_was_trained_stays(guided, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        acting_settings.change(GUIDED, guided, settings)
    assert "\n" not in str(error.value)


def test_arrays_keep_their_shapes_whatever_a_setting_is_called(plan):
    """A system whose ensemble has as many members as it takes candidates."""

    @dataclasses.dataclass(frozen=True)
    class Config(decision_diffuser.Config):
        candidates: int = 2

    def make(config, spec, given):
        made = decision_diffuser.make(config, spec, given)
        return made._replace(learned=lambda state: jnp.zeros(config.candidates))

    system = PLAN._replace(config=Config().tiny(), make=make)
    learned = recipe.untrained(system, jax.random.key(0))
    with pytest.raises(ValueError, match="would have other shapes"):
        acting_settings.change(system, learned, {"candidates": 3})


def test_texts_are_read_by_the_types_of_the_settings():
    read = acting.settings(
        GUIDED,
        [
            Override("agent.scale", "1e-3"),
            Override("given.planner.warm_start", "4"),
            Override("given.planner.sample_steps", "none"),
        ],
    )
    assert read == {
        "scale": 1e-3,
        "given.planner.warm_start": 4,
        "given.planner.sample_steps": None,
    }
    with pytest.raises(ValueError, match=r"nearest is --config\.agent\.scale"):
        acting.settings(GUIDED, [Override("agent.scal", "1")])
    with pytest.raises(ValueError, match=r"drop --config\.train\.steps"):
        acting.settings(GUIDED, [Override("train.steps", "1")])


def test_no_array_depends_on_settings_of_acting():
    """The names are a promise: nothing that is learned has another shape by them."""
    changes = {"sampler": "ddim", "sample_steps": 3, "execute": 2, "temperature": 0.1}
    assert set(changes) <= ACTING
    other = PLAN._replace(config=dataclasses.replace(PLAN.config, **changes))
    assert recipe.abstract(PLAN, 1) == recipe.abstract(other, 1)
