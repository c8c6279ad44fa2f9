"""What a plan takes, through the functions that carry plans out in the simulator."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.machine import BLOCKS

LEAST = 2  # plans of a block, however long they take


class Taken(NamedTuple):
    """What planning takes.

    Attributes:
      actions: h, of a plan.
      plans_per_s: states over the median time of a plan for all of them.
      decisions_per_s: h actions a plan, the time of handing them out counted: steps of
        the environment in a second, if the simulator took none.
      range: of the blocks' decisions a second.
      median_ms: of a plan.
      p99_ms: the 99th percentile; of few plans it is near the slowest one.
    """

    actions: int
    plans_per_s: float
    decisions_per_s: float
    range: list[float]
    median_ms: float
    p99_ms: float


class Work(NamedTuple):
    """A policy in use.

    Attributes:
      cycle: `() -> (seconds of a plan, of it and of all its actions)`.
      actions: h, of a plan.
    """

    cycle: Callable[[], tuple[float, float]]
    actions: int


def time_plans(
    policies: Mapping[str, tuple[Any, Any]], spec: Any, states: int, seconds: float = 3
) -> dict[str, Taken]:
    """Times the plans of several policies, which take turns.

    A plan is made for all states by the `Player` that evaluations act with, and its
    actions are handed out one after another; the states stay where they are.  A warm
    start is measured warm.

    Args:
      policies: by name, a policy on the environment's scale and what one member of it
        has learned, stacked ([1, ...]).
      spec: sizes of the data.
      states: at once.
      seconds: of a policy, about: five blocks of at least two plans each.

    Returns:
      By name, what was measured.
    """
    works = {name: _work(*policy, spec, states) for name, policy in policies.items()}
    for work in works.values():
        work.cycle()  # compiles; a second one is the first that starts warm
        work.cycle()
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in works}
    for _ in range(BLOCKS):
        for name, work in works.items():
            blocks[name].append(_block(work, seconds / BLOCKS))
    return {name: _taken(blocks[name], works[name].actions, states) for name in works}


def _work(policy: Any, learned: Any, spec: Any, states: int) -> Work:
    import jax

    from jdql.runtime import distributed
    from jdql.runtime.acting import Player

    mesh = distributed.member_mesh(1, jax.local_devices()[:1])
    player = Player(policy, [0], range(states), mesh)
    player.start(learned)
    size = spec.observation_dim
    one = jax.tree.map(lambda leaf: leaf[0], learned)
    seen = np.zeros((policy.history, size), np.float32)
    plan, _ = jax.eval_shape(policy.act, one, policy.reset(), seen, jax.random.key(0))
    observation = np.zeros((1, states, size), np.float32)
    live = np.ones((1, states), bool)

    def cycle() -> tuple[float, float]:
        start = time.perf_counter()
        player(observation, live)
        planned = time.perf_counter()
        for _ in range(len(plan) - 1):
            player(observation, live)
        return planned - start, time.perf_counter() - start

    return Work(cycle, len(plan))


def _block(work: Work, seconds: float) -> np.ndarray:
    """Seconds of plans and of cycles, [plans, 2]."""
    taken: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < LEAST:
        taken.append(work.cycle())
    return np.array(taken)


def _taken(blocks: list[np.ndarray], actions: int, states: int) -> Taken:
    plans, cycles = (
        np.array([np.median(block[:, i]) for block in blocks]) for i in range(2)
    )
    rates = states * actions / cycles
    every = np.concatenate(blocks)[:, 0]
    return Taken(
        actions=actions,
        plans_per_s=float(states / np.median(plans)),
        decisions_per_s=float(np.median(rates)),
        range=[float(np.min(rates)), float(np.max(rates))],
        median_ms=1e3 * float(np.median(plans)),
        p99_ms=1e3 * float(np.percentile(every, 99)),
    )
