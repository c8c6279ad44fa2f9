"""Updates per second, and what compiling them takes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.machine import Row, Settings, references, rounds

WALKER2D = (17, 6)  # sizes of observation and action
ROWS = 1_000_000


def update_flops(steps: int, batch: int, sizes: tuple[int, int] = WALKER2D) -> float:
    """Matrix-product FLOPs that one Diffusion-QL update cannot do without.

    A product of (B, I) and (I, F) is 2 B I F, whether it makes an output, a gradient of
    the weights or a gradient of the input.  Gradients of inputs that nothing depends on
    (observations, noise, the head that only normalises) are not counted.
    """
    O, A = sizes
    features, width = 16, 256
    hidden = 2 * width * width
    actor = (A + features + O) * width + hidden + width * A
    actor_input = (A + features) * width + hidden + width * A  # gradient of its inputs
    critic = (O + A) * width + hidden + width
    target = steps * actor + 2 * critic
    evaluation = 2 * 2 * critic + 2 * (hidden + width)
    cloning = 2 * actor + hidden + width * A + features * width
    chain = steps * (2 * actor + actor_input)
    improvement = 2 * critic + hidden + width + A * width
    return 2.0 * batch * (target + evaluation + cloning + chain + improvement)


def synthetic_data(rows: int = ROWS):
    """Random transitions of Walker2d's sizes, on the host."""
    from jdql.data.dataset import Dataset

    O, A = WALKER2D
    rng = np.random.default_rng(0)
    arrays: Any = (
        rng.standard_normal((rows, O), np.float32),
        rng.uniform(-1, 1, (rows, A)).astype(np.float32),
        rng.standard_normal(rows, np.float32),
        rng.standard_normal((rows, O), np.float32),
        np.zeros(rows, bool),
        np.zeros(rows, bool),
        np.array([rows], np.int32),
    )
    return Dataset(*arrays)


def spec():
    """Walker2d's sizes."""
    from jdql.types import DataSpec

    O, A = WALKER2D
    return DataSpec(O, A, (-1.0,) * A, (1.0,) * A)


def recipe_of(config: Any) -> Any:
    """How a system of Walker2d's sizes is made."""
    from jdql.agents import base
    from jdql.data.dataset import make_source
    from jdql.runtime.recipe import Recipe

    scaling = make_source("synthetic", synthetic_data(2), spec()).scaling
    return Recipe(base.maker(config), config, spec(), scaling)


class Training(NamedTuple):
    """Compiled updates with what they need, and what they take.

    Attributes:
      updates: `(state) -> (state, metrics)`.
      state: the first one.
      length: updates in a call.
      compile_s: seconds to compile it.
      xla_flops: of a call, as XLA counts: the body of a loop once.
      memory: bytes that a call needs on a device, dataset included.
      devices: that it runs on.
    """

    updates: Callable
    state: Any
    length: int
    compile_s: float
    xla_flops: float | None
    memory: int
    devices: int


def training(seeds: int, steps: int, batch: int, precision: str) -> Training:
    """Compiles updates of `seeds` members, as the run loop makes them."""
    import jax

    from jdql.agents import diffusion_ql
    from jdql.runtime import distributed, members

    config = diffusion_ql.Config(grad_norm=1.0, diffusion_steps=steps, batch_size=batch)
    mesh, system = distributed.member_mesh(seeds), recipe_of(config)
    everyone = members.stacked(config, [{"seed": i} for i in range(seeds)])
    who = jax.device_put(everyone, distributed.sharded(mesh))
    data = jax.device_put(synthetic_data(), distributed.replicated(mesh))
    # On a CPU about a second of work; on a GPU enough for its launches not to count.
    length = max(1, round(150 / steps / seeds)) if distributed.on_cpu() else 500
    state = members.make_init(system, mesh)(who)
    with jax.default_matmul_precision(distributed.PRECISIONS[precision]):
        updates: Any = members.make_updates(system, mesh, length)
        start = time.perf_counter()
        compiled = updates.lower(state, who, data).compile()
        took = time.perf_counter() - start
    costs, needs = compiled.cost_analysis() or {}, compiled.memory_analysis()
    memory = needs.argument_size_in_bytes + needs.temp_size_in_bytes
    memory += needs.output_size_in_bytes - needs.alias_size_in_bytes
    return Training(
        lambda state: compiled(state, who, data),
        state,
        length,
        took,
        costs.get("flops"),
        memory,
        mesh.size,
    )


def bench_train(settings: Settings, reference: Row) -> list[Row]:
    """Updates per second, and the share of the machine's matrix-product speed.

    Shares, and the speed of a precision in units of the first one's, are medians over
    rounds in which the updates and the products take turns.
    """
    del reference  # measured again, in turns with the update
    cases = itertools.product(settings.steps, settings.batch, settings.seeds)
    return [row for case in cases for row in train_rows(settings.precision, *case)]


def train_rows(
    precisions: Sequence[str], steps: int, batch: int, seeds: int, seconds: float = 1.0
) -> list[Row]:
    """A row for each precision; `seconds` are those of one work in one round."""
    cases = {name: training(seeds, steps, batch, name) for name in precisions}
    known = {
        name: references(name, case.devices)  # the same devices for every precision
        for name, case in cases.items()
    }
    works: dict[str, Callable] = {name: _goes_on(case) for name, case in cases.items()}
    for name, products in known.items():
        works |= {f"{name} {kind}": product.work for kind, product in products.items()}
    taken = {name: np.array(times) for name, times in rounds(works, seconds).items()}
    flops, first = update_flops(steps, batch), precisions[0]
    rows = []
    for name, case in cases.items():
        rate = case.length * seeds / taken[name]
        shares = {
            f"of_{kind}": float(
                np.median(flops * rate * taken[f"{name} {kind}"] / product.flops)
            )
            for kind, product in known[name].items()
        }
        rows.append(
            {
                "mode": "train",
                "seeds": seeds,
                "steps": steps,
                "batch": batch,
                "precision": name,
                "updates_per_s": float(np.median(rate)) / seeds,
                "seed_updates_per_s": float(np.median(rate)),
                "range": [float(np.min(rate)), float(np.max(rate))],
                f"of_{first}": float(np.median(taken[first] / taken[name])),
                "gflop_by_hand": flops / 1e9,
                "gflop_by_xla": case.xla_flops and case.xla_flops / 1e9,
                "gflops": float(np.median(flops * rate)) / 1e9,
                **shares,
                "compile_s": case.compile_s,
                "memory_gib": case.memory / 2**30,
            }
        )
    return rows


def _goes_on(case: Training) -> Callable[[], Any]:
    """Updates that begin where the last ones ended."""
    state = case.state

    def work() -> Any:
        nonlocal state
        state, metrics = case.updates(state)
        return metrics

    return work


def bench_compile(settings: Settings, reference: Row) -> list[Row]:
    """Seconds to compile a call of updates: anew, and from the persistent cache."""
    import tempfile

    import jax
    from jax.experimental.compilation_cache import compilation_cache

    del reference
    rows = []
    for steps in settings.steps:
        with tempfile.TemporaryDirectory() as folder:
            jax.config.update("jax_compilation_cache_dir", folder)
            compilation_cache.reset_cache()  # it is bound to the folder of before
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
            took = []
            for _ in range(2):
                jax.clear_caches()
                took.append(training(1, steps, settings.batch[0], "float32").compile_s)
            jax.config.update("jax_compilation_cache_dir", None)
        rows.append(
            {"mode": "compile", "steps": steps, "cold_s": took[0], "cached_s": took[1]}
        )
    return rows
