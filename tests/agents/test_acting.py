"""Agents that act with any sampler: it changes how they act, not how they train."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.agents import base
from tests.agents import toys
from tests.agents.programs import once
from tests.agents.toys import SPEC

SAMPLED = {"sampler", "sample_steps"}


def tiny(module, **changes):
    return dataclasses.replace(module.Config().tiny(), **changes)


def has(module, names: set[str]) -> bool:
    return names <= {field.name for field in dataclasses.fields(module.Config)}


SYSTEMS = {
    name: module
    for name, module in toys.discovered().items()
    if has(module, SAMPLED) and not base.required(module.Config())
}
systems = pytest.mark.parametrize("name", SYSTEMS)


def test_systems_with_a_sampler_are_found():
    assert {"diffusion_ql", "diffusion_bc"} <= set(SYSTEMS)


@systems
def test_an_agent_acts_with_a_sampler_that_stops_between_steps(name):
    module = SYSTEMS[name]
    # One candidate: the best of many lies in a corner before any training.
    alone = {"candidates": 1} if has(module, {"candidates"}) else {}
    config = tiny(module, sampler="dpmpp_2m", sample_steps=7, **alone)
    agent = base.maker(config)(config, SPEC, base.NOTHING)

    @once
    def play(key):
        learned = agent.learned(agent.init(jax.random.key(0)))
        keys = jax.random.split(key, 16)
        return jax.vmap(lambda key: toys.act(agent, learned, jnp.ones(3), key))(keys)

    actions = np.reshape(play(jax.random.key(1)), (-1, SPEC.action_dim))
    assert np.all(actions >= toys.LOW - 1e-6)
    assert np.all(actions <= toys.HIGH + 1e-6)
    assert actions.std(axis=0).min() > 1e-3


@pytest.mark.parametrize("name", ["diffusion_ql", "diffusion_bc"])
def test_the_sampler_of_acting_leaves_training_alone(name):
    module = SYSTEMS[name]

    def noise_of(config):
        agent = module.make(config, SPEC)
        return jax.tree.map(jnp.shape, jax.eval_shape(agent.draw, jax.random.key(0)))

    other = tiny(module, sampler="ddim", sample_steps=2)
    assert noise_of(other) == noise_of(tiny(module))


@systems
@pytest.mark.parametrize(
    ("sampler", "steps", "message"),
    [
        ("dpm", None, "sampler must be one of"),
        ("dpmpp_2m", 0, "sample_steps must be at least 1"),
        ("ancestral", 6, "at most diffusion_steps, 5"),
    ],
)
def test_an_agent_refuses_an_impossible_sampler(name, sampler, steps, message):
    config = tiny(SYSTEMS[name], diffusion_steps=5, sampler=sampler, sample_steps=steps)
    with pytest.raises(ValueError, match=message):
        base.maker(config)(config, SPEC, base.NOTHING)


# Data actions off their bounds. -------------------------------------------------------

LIMITED = [n for n, m in toys.discovered().items() if has(m, {"action_limit"})]


def test_systems_that_keep_off_the_bounds_are_found():
    assert {"edp", "fql", "bfn", "ifql"} <= set(LIMITED)


@pytest.mark.parametrize("name", LIMITED)
def test_actions_of_the_data_are_kept_off_the_bounds(name):
    """By a share of half the range: 0.999 of 2 about 1 is from 0.002 to 3.998."""
    config = tiny(toys.discovered()[name])
    spec = SPEC._replace(action_low=(-1.0, 0.0), action_high=(1.0, 4.0))
    agent = base.maker(config)(config, spec, base.NOTHING)
    corners = jnp.tile(jnp.array([[1.0, 4.0], [-1.0, 0.0], [0.3, 3.1]]), (10, 1))
    data = toys.dataset()._replace(action=jnp.concatenate([corners, corners[:10]]))
    action = once(agent.sample_batch)(jax.random.key(0), data).action
    off = 1 - config.action_limit
    expected = [[-1 + off, 2 * off], [0.3, 3.1], [1 - off, 4 - 2 * off]]
    rows = np.unique(np.reshape(action, (-1, 2)), axis=0)
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1.5e-7 * 4)
    assert config.action_limit == (0.999 if name == "edp" else 1 - 1e-5)
