"""What one update of the policy costs: EDP's one call against Diffusion-QL's chain."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.machine import Row, Settings, rounds
from experiments.benchmarks.training import spec, synthetic_data


class PolicyUpdate(NamedTuple):
    """The part of an agent's update that is the policy's.

    Attributes:
      loss: `(actor params, state, batch, draws) -> (loss, parts of it)`, where the
        critics are those of the state.
      state: at the start.
      draws: the noise of an update.
    """

    loss: Callable[..., Any]
    state: Any
    draws: Any


def diffusion_ql_policy(steps: int, batch: int) -> PolicyUpdate:
    """Cloning, and improvement through all `steps` steps of the chain."""
    import jax

    from jdql.agents import diffusion_ql

    config = diffusion_ql.Config(diffusion_steps=steps, batch_size=batch)
    parts, agent = diffusion_ql.build(config, spec()), diffusion_ql.make(config, spec())

    def loss(params, state, batch, draws):
        critic = state.critic.params
        return diffusion_ql.actor_loss(params, parts, critic, batch, draws)

    key = jax.random.key(0)
    # The target's chain is the critic's; without it a thousand steps fit anywhere.
    draws = jax.jit(lambda key: agent.draw(key)._replace(target=None))(key)
    return PolicyUpdate(loss, jax.jit(agent.init)(key), draws)


def edp_policy(steps: int, batch: int) -> PolicyUpdate:
    """Cloning and improvement with one call of the noise network."""
    import jax

    from jdql.agents import edp

    config = edp.Config(diffusion_steps=steps, batch_size=batch, schedule="vp")
    parts, agent = edp.build(config, spec()), edp.make(config, spec())

    def loss(params, state, batch, draws):
        return edp.actor_loss(params, parts, state, batch, draws)

    key = jax.random.key(0)
    draws = jax.jit(lambda key: agent.draw(key)._replace(target=None))(key)
    return PolicyUpdate(loss, jax.jit(agent.init)(key), draws)


def synthetic_batch(size: int):
    """Random transitions of Walker2d's sizes."""
    import jax

    from jdql.data.sampling import transitions

    dataset = jax.tree.map(jax.numpy.asarray, synthetic_data(size))
    return transitions(jax.random.key(0), dataset, size)


def compiled(update: PolicyUpdate, batch: int) -> Callable[[], Any]:
    """Gradient and optimiser step of the policy, which go on from the last call."""
    import jax

    from jdql.optim import adam, descend

    optimizer = adam(3e-4, 5.0)
    state, draws, data = update.state, update.draws, synthetic_batch(batch)

    def step(actor):
        return descend("actor", optimizer, actor, update.loss, state, data, draws)

    run = jax.jit(step, donate_argnums=0)
    # A copy: the first call gives its arguments away.
    actor = jax.tree.map(lambda leaf: leaf.copy(), state.actor)

    def work():
        nonlocal actor
        actor, metrics = run(actor)
        return metrics

    return work


def bench_policy(settings: Settings, reference: Row) -> list[Row]:
    """Milliseconds of the policy's update alone, and how often EDP's fits in it.

    Gradient of the actor's loss and its optimiser step, without the critic and without
    drawing noise; the two agents take turns.
    """
    del reference
    cases = itertools.product(settings.precision, settings.batch, settings.steps)
    return [policy_row(*case) for case in cases]


def policy_row(precision: str, batch: int, steps: int, seconds: float = 1.0) -> Row:
    """One row of the table; `seconds` are those of an agent in one of five rounds."""
    import jax

    from jdql.runtime.distributed import PRECISIONS

    agents = {"diffusion_ql": diffusion_ql_policy, "edp": edp_policy}
    with jax.default_matmul_precision(PRECISIONS[precision]):
        works = {
            name: compiled(make(steps, batch), batch) for name, make in agents.items()
        }
        taken = {name: np.array(t) for name, t in rounds(works, seconds).items()}
    ratio = taken["diffusion_ql"] / taken["edp"]
    return {
        "mode": "policy",
        "steps": steps,
        "batch": batch,
        "precision": precision,
        **{f"{name}_ms": 1e3 * float(np.median(t)) for name, t in taken.items()},
        "ratio": float(np.median(ratio)),
        "range": [float(ratio.min()), float(ratio.max())],
    }
