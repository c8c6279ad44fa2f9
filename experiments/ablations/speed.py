"""The time of one update, measured on chunks that are compiled and warm."""

from __future__ import annotations

import importlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax

from jdql.config import Config
from jdql.data.dataset import Source
from jdql.runtime import distributed, members

CHUNKS = 7  # timed; the median counts
LENGTH = 20  # updates in a chunk; on an accelerator ten times that
FILE = "update_time.json"


def measure(config: Config, source: Source) -> dict[str, Any]:
    """Trains a few chunks for nothing but their time.

    Args:
      config: the run; all its members are trained, as they will be.
      source: the dataset.

    Returns:
      `milliseconds` of an update of all members (the median), the `slowest` and the
      `fastest` chunk's, and what was measured on.
    """
    make = importlib.import_module(type(config.agent).__module__).make
    rows = members.rows(config)
    mesh = distributed.member_mesh(len(rows))
    length = LENGTH if distributed.on_cpu() else 10 * LENGTH
    arguments = (make, config.agent, source.spec, mesh)
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
    return {
        "milliseconds": statistics.median(each),
        "fastest": min(each),
        "slowest": max(each),
        "members": len(rows),
        "devices": mesh.size,
        "device": mesh.devices.flat[0].device_kind,
        "chunks": CHUNKS,
        "updates": length,
    }


def read(folder: Path) -> dict[str, Any] | None:
    """What `save` left in a run folder; None where there is nothing yet."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.is_file() else None


def save(folder: Path, measured: dict[str, Any]) -> None:
    """Puts a measurement beside the run that it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(measured, indent=2) + "\n")
