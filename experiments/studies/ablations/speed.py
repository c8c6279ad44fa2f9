"""The time of an update and of a decision, of programs that are compiled and warm."""

from __future__ import annotations

import importlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdql.collect import collect
from jdql.config import Config
from jdql.data import sources
from jdql.data.dataset import Source
from jdql.runtime import distributed, members

CHUNKS = 7  # timed; the median counts
LENGTH = 20  # updates in a chunk; on an accelerator ten times that
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
    """Trains a few chunks, and acts, for nothing but their time.

    Args:
      config: the run; all its members are trained, as they will be.
      source: the dataset.

    Returns:
      `milliseconds` of an update of all members (the median), the `slowest` and the
      `fastest` chunk's, `acting_milliseconds` of one decision of one member (the
      median), and what was measured on.
    """
    make = importlib.import_module(type(config.agent).__module__).make
    rows = members.rows(config)
    mesh = distributed.member_mesh(len(rows))
    length = LENGTH if distributed.on_cpu() else 10 * LENGTH
    arguments = (make, config.agent, source.agent_spec, mesh)
    inputs = distributed.put(members.stacked(rows), distributed.sharded(mesh))
    dataset = distributed.put(source.dataset, distributed.replicated(mesh))
    state = members.make_init(*arguments)(inputs)
    chunk = members.make_chunk(*arguments, length)
    seconds = []
    for _ in range(CHUNKS + 1):  # the first one compiles
        start = time.perf_counter()
        state, _ = jax.block_until_ready(chunk(state, inputs, dataset))
        seconds.append(time.perf_counter() - start)
    each = [1e3 * s / length for s in seconds[1:]]
    agent = make(config.agent, source.agent_spec)
    decision = _decision(agent, state, source.spec.observation_dim)
    return {
        "milliseconds": statistics.median(each),
        "fastest": min(each),
        "slowest": max(each),
        "acting_milliseconds": 1e3 * decision,
        "members": len(rows),
        "devices": mesh.size,
        "device": mesh.devices.flat[0].device_kind,
        "chunks": CHUNKS,
        "updates": length,
    }


def _decision(agent: Any, state: Any, size: int) -> float:
    """Seconds from one observation to its action, the median; the first call aside."""
    first = jax.tree.map(lambda leaf: np.asarray(leaf[0]), state)
    policy = jax.device_put(agent.policy(first), jax.devices()[0])
    carry, observation = agent.reset(), np.zeros(size, np.float32)
    act = jax.jit(lambda observation, key: agent.act(policy, carry, observation, key))
    seconds = []
    for key in jax.random.split(jax.random.key(0), DECISIONS + 1):
        start = time.perf_counter()
        jax.block_until_ready(act(observation, key))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def read(folder: Path) -> dict[str, Any]:
    """What `save` left in a run folder."""
    return json.loads((folder / FILE).read_text())


def save(folder: Path, measured: dict[str, Any]) -> None:
    """Puts a measurement beside the run that it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(measured, indent=2) + "\n")
