"""Small data and states, and what several agents' tests compute by hand."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jdql.agents
from jdql.agents.base import Agent
from jdql.data.dataset import Dataset, from_arrays
from jdql.optim import Model
from jdql.types import Chunk, DataSpec, Transition
from tests.agents.programs import once

SPEC = DataSpec(3, 2, (-1.0, -0.5), (1.0, 0.5))
LOW, HIGH = np.array(SPEC.action_low), np.array(SPEC.action_high)


def discovered() -> dict[str, Any]:
    """The modules of `jdql.agents` that are systems, by name."""
    names = [module.name for module in pkgutil.iter_modules(jdql.agents.__path__)]
    modules = {name: importlib.import_module(f"jdql.agents.{name}") for name in names}
    return {
        name: module for name, module in modules.items() if hasattr(module, "Config")
    }


def on_device(arrays: Any) -> Any:
    """Arrays that may be kept, also where the caller is being traced."""
    with jax.ensure_compile_time_eval():
        return jax.tree.map(jnp.asarray, arrays)


@functools.cache
def dataset() -> Dataset:
    """Forty steps: true ends every ten, time-outs between them; actions on bounds."""
    rng, i = np.random.default_rng(0), np.arange(40)
    action = np.clip(rng.normal(size=(40, 2)), LOW, HIGH)
    steps = (rng.normal(size=(40, 3)), action, rng.normal(size=40))
    ends = (rng.normal(size=(40, 3)), i % 10 == 9)
    return on_device(from_arrays(*steps, *ends, timeout=i % 10 == 4))


@functools.cache
def batch(size: int = 8) -> Transition:
    """Steps of which every other one ends its episode."""
    rng = np.random.default_rng(1)
    shapes = ((size, 3), (size, 2), (size,), (size, 3))
    observation, action, reward, following = (rng.normal(size=s) for s in shapes)
    action = np.clip(action, 0.9 * LOW, 0.9 * HIGH)
    rows = (observation, action, reward, np.arange(size) % 2, following)
    return on_device(Transition(*(row.astype(np.float32) for row in rows)))


@functools.cache
def initial(agent: Agent) -> Any:
    """A fresh state whose averages are not its parameters but those of another one."""
    state, other = map(once(agent.init), jax.random.split(jax.random.key(0)))

    def apart(model: Any, another: Any) -> Any:
        if isinstance(model, Model) and model.average != ():
            return model._replace(average=another.params)
        return model

    return type(state)(*map(apart, state, other))


def act(agent: Agent, learned: Any, observation: Any, key: Any) -> jax.Array:
    """The actions `[h, A]` that an agent plans for what it sees now."""
    assert agent.acting is not None
    seen = jnp.tile(jnp.asarray(observation), (agent.acting.history, 1))
    return agent.acting.act(learned, agent.acting.reset(), seen, key)[0]


def between(target: Any, online: Any, rate: float) -> Any:
    """(1 - rate) target + rate online."""
    return jax.tree.map(lambda t, o: (1 - rate) * t + rate * o, target, online)


def assert_near(actual: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-7):
    """Tree by tree."""
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=atol),
        actual,
        expected,
    )


# Flows and chunks. --------------------------------------------------------------------


def along_the_flow(velocity, x: jax.Array, observation: jax.Array, steps: int):
    """Euler's method as a loop, within the bounds of flattened chunks."""
    for i in range(steps):
        x = x + velocity(x, jnp.full(len(x), i / steps), observation) / steps
    repeats = x.shape[-1] // 2
    return jnp.clip(x, jnp.tile(LOW, repeats), jnp.tile(HIGH, repeats))


def chunk_row(chunk: Chunk, gamma: float) -> dict[str, jax.Array]:
    """Chunks as plain rows: what is not valid counts in no loss."""
    h = chunk.reward.shape[1]
    return {
        "seen": chunk.observation,
        "action": jnp.stack(
            [jnp.concatenate(list(actions)) for actions in chunk.action]
        ),
        "return": chunk.reward @ gamma ** np.arange(h),
        "factor": gamma**h * chunk.mask,
        "next": chunk.next_observation,
        "mask": np.repeat(chunk.valid, 2, axis=1),
        "weight": chunk.valid[:, -1],
    }
