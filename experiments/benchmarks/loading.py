"""Reading a dataset: seconds and memory."""

from __future__ import annotations

import os
import time

from experiments.benchmarks.machine import BLOCKS, Row, Settings
from experiments.benchmarks.training import WALKER2D


def bench_load(settings: Settings, reference: Row) -> list[Row]:
    """Seconds to read a million transitions from Minari's format, and peak memory."""
    import resource
    import tempfile

    import numpy as np

    from jdql.config import DataConfig
    from jdql.data import sources

    del settings, reference
    O, A = WALKER2D
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        name = _store_synthetic(1_000, 1_000, O, A)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times = []
        for _ in range(BLOCKS):
            start = time.perf_counter()
            source = sources.load(DataConfig(dataset=(name,)), log=lambda line: None)
            times.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = sum(np.asarray(field).nbytes for field in source.dataset)
    return [
        {
            "mode": "load",
            "transitions": source.dataset.size,
            "seconds": float(np.median(times)),
            "range": [min(times), max(times)],
            "arrays_mib": size / 2**20,
            "peak_grew_mib": (after - before) / 2**10,
        }
    ]


def _store_synthetic(episodes: int, length: int, O: int, A: int) -> str:
    import minari
    import numpy as np
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(0)
    ends = np.arange(length) == length - 1
    buffers = [
        EpisodeBuffer(
            id=i,
            observations=rng.standard_normal((length + 1, O)),
            actions=rng.uniform(-1, 1, (length, A)).astype(np.float32),
            rewards=rng.standard_normal(length),
            terminations=np.zeros(length, bool),
            truncations=ends,
            infos={},
        )
        for i in range(episodes)
    ]
    minari.create_dataset_from_buffers(
        "jdql/bench/synthetic-v0", buffer=buffers, env="Walker2d-v5", data_format="hdf5"
    )
    return "jdql/bench/synthetic-v0"
