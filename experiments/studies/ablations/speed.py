"""The time of an update and of a decision, of programs that are compiled and warm."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdql.agents import base
from jdql.collect import collect
from jdql.config import Config
from jdql.data import sources
from jdql.data.dataset import Source
from jdql.runtime import distributed, members, recipe
from jdql.runtime.recipe import Recipe

CALLS = 7  # timed; the median counts
LENGTH = 20  # updates in a call; on an accelerator ten times that
DECISIONS = 100  # timed one by one, of one state each
FILE = "update_time.json"


def measured(planned: Sequence[Config], log: Callable[[str], None]) -> None:
    """Times those of the runs whose time is not on record; all have the same data."""
    missing = [c for c in planned if not (Path(c.run.dir) / FILE).is_file()]
    if not missing:
        return
    source = sources.load(missing[0].data, collect=collect.collect, log=log)
    for config in missing:
        found = measure(config, source)
        save(Path(config.run.dir), found)
        log(f"{config.name}: {found['milliseconds']:.2f} ms an update")


def measure(config: Config, source: Source) -> dict[str, Any]:
    """Trains a few calls of updates, and acts, for nothing but their time.

    Args:
      config: the run; all its members are trained, as they will be.
      source: the dataset.

    Returns:
      `milliseconds` of an update of all members (the median), the `slowest` and the
      `fastest` call's, `acting_milliseconds` of one decision of one member (the
      median), and what was measured on.
    """
    system = Recipe(
        base.maker(config.agent), config.agent, source.agent_spec, source.scaling
    )
    everyone = members.members_of(config)
    mesh = distributed.member_mesh(len(everyone))
    length = LENGTH if distributed.on_cpu() else 10 * LENGTH
    stacked = members.stacked(config.agent, everyone)
    inputs = distributed.put(stacked, distributed.sharded(mesh))
    data = distributed.put(
        members.prepared(system, config, source.dataset), distributed.replicated(mesh)
    )
    state = members.make_init(system, mesh)(inputs)
    updates = members.make_updates(system, mesh, length)
    seconds = []
    for _ in range(CALLS + 1):  # the first one compiles
        start = time.perf_counter()
        state, _ = jax.block_until_ready(updates(state, inputs, data))
        seconds.append(time.perf_counter() - start)
    each = [1e3 * s / length for s in seconds[1:]]
    learned = members.make_learned(system, mesh)(state, inputs)
    return {
        "milliseconds": statistics.median(each),
        "fastest": min(each),
        "slowest": max(each),
        "acting_milliseconds": 1e3 * _decision(system, learned),
        "members": len(everyone),
        "devices": mesh.size,
        "device": mesh.devices.flat[0].device_kind,
        "calls": CALLS,
        "updates": length,
    }


def _decision(system: Recipe, learned: Any) -> float:
    """Seconds from one observation to a plan, the median; the first call aside."""
    acting = recipe.acting(system)
    assert acting is not None
    first = jax.tree.map(lambda leaf: np.asarray(leaf[0]), learned)
    first = jax.device_put(first, jax.devices()[0])
    carry = acting.reset()
    seen = np.zeros((acting.history, system.spec.observation_dim), np.float32)
    act = jax.jit(lambda seen, key: acting.act(first, carry, seen, key))
    seconds = []
    for key in jax.random.split(jax.random.key(0), DECISIONS + 1):
        start = time.perf_counter()
        jax.block_until_ready(act(seen, key))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def read(folder: Path) -> dict[str, Any]:
    """What `save` left in a run folder."""
    return json.loads((folder / FILE).read_text())


def save(folder: Path, measured: dict[str, Any]) -> None:
    """Puts a measurement beside the run that it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(measured, indent=2) + "\n")
