"""What a checkpoint costs: the time that training waits for it, and the disk."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from experiments.benchmarks.machine import BLOCKS, Row, Settings
from experiments.benchmarks.training import spec, training

EVERY = 50_000  # updates between checkpoints, the authors' between evaluations


def bench_save(settings: Settings, reference: Row) -> list[Row]:
    """Updates with a save before them, in turns with updates without one.

    The save goes on in the background while the updates are computed, so that what it
    takes from them is counted too.
    """
    del reference
    return [
        _row(seeds, settings.steps[0], settings.batch[0]) for seeds in settings.seeds
    ]


def _row(seeds: int, steps: int, batch: int) -> Row:
    import jax

    from jdql.agents import diffusion_ql
    from jdql.runtime import checkpoint

    case = training(seeds, steps, batch, "float32")
    agent = diffusion_ql.make(diffusion_ql.Config(grad_norm=1.0), spec())
    learned_of = jax.vmap(agent.learned)
    state, step = case.state, 0

    def updates() -> None:
        nonlocal state
        for _ in range(calls):
            state, metrics = case.updates(state)
            jax.block_until_ready(metrics)

    with (
        tempfile.TemporaryDirectory() as folder,
        checkpoint.Checkpoints(folder) as checkpoints,
    ):

        def save() -> None:
            nonlocal step
            step += 1
            learned = learned_of(state)
            checkpoints.save(
                step, train=state, learned=learned, best=learned, metadata={}
            )

        calls = 1
        updates()
        calls = max(1, round(2.0 / _seconds(updates)))  # longer than the background
        save()
        checkpoints.wait()
        plain, waiting, saving = [], [], []
        for _ in range(BLOCKS):
            plain.append(_seconds(updates))
            waiting.append(_seconds(save))
            saving.append(waiting[-1] + _seconds(updates))
            checkpoints.wait()
        size = sum(f.stat().st_size for f in Path(folder, str(step)).rglob("*"))
    extras = np.array(saving) - np.array(plain)
    extra = float(np.median(extras))
    interval = EVERY * float(np.median(plain)) / (calls * case.length)
    return {
        "mode": "save",
        "seeds": seeds,
        "mib": size / 2**20,
        "waits_s": float(np.median(waiting)),
        "costs_s": extra,
        "range": [float(extras.min()), float(extras.max())],
        f"of_{EVERY}_updates": extra / interval,
    }


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
