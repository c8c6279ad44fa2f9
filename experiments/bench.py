"""Measures speed: training, acting, evaluation, loading and compiling.

    python -m experiments.bench                       # all of them, at default sizes
    python -m experiments.bench train --seeds=1,4,16,64,256 --steps=5,100
    taskset -c 0 python -m experiments.bench train --seeds=1 --steps=5,100
    python -m experiments.bench act --batch=1,16,256 --json=bench.json

train, act and compile need only jax, flax, optax and chex, and data made up on the
spot; eval needs the simulator, load Minari. Figures are medians of five blocks
with the range beside them. Every table begins with this machine's matrix-product
speed, measured in the same run, since a shared machine is as fast as its neighbours let
it be.  Options take lists: --seeds, --steps (of diffusion), --batch, --precision.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments import cli
from experiments.overrides import Override

BLOCKS = 5
WALKER2D = (17, 6)  # sizes of observation and action
ROWS = 1_000_000
MODES = ("train", "act", "eval", "load", "compile")

Row = dict[str, Any]


class Settings(NamedTuple):
    """What to measure, parsed."""

    seeds: list[int]
    steps: list[int]
    batch: list[int]
    precision: list[str]


def define(values: flags.FlagValues) -> None:
    """The program's flags."""

    def strings(name: str, default: str, text: str) -> None:
        flags.DEFINE_list(name, default.split(","), text, flag_values=values)

    flags.DEFINE_list(
        "modes",
        [],
        "train, act, eval, load, compile, also without --modes; all if none is named",
        flag_values=values,
    )
    strings("seeds", "1,4", "members at once, for train and eval")
    strings("steps", "5", "diffusion steps")
    strings("batch", "256", "batch sizes for train; states at once for act")
    strings("precision", "float32", "float32, tf32, bfloat16")
    flags.DEFINE_string("json", None, "also write the rows here", flag_values=values)


def program(values: flags.FlagValues, overrides: list[Override]) -> int:
    """Runs the modes and prints their tables."""
    if overrides:
        raise ValueError("bench takes no --config settings: see --help")
    modes = values.modes or MODES
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} cannot be measured: there are {list(MODES)}")
    settings = Settings(
        _numbers(values.seeds, "seeds"),
        _numbers(values.steps, "steps"),
        _numbers(values.batch, "batch"),
        values.precision,
    )
    from jdql.runtime import distributed

    distributed.configure(max(settings.seeds))
    rows = [machine()]
    show("machine", rows)
    for mode in modes:
        found = _MODES[mode](settings, rows[0])
        show(mode, found)
        rows += found
    if values.json:
        Path(values.json).write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def _numbers(texts: Sequence[str], name: str) -> list[int]:
    if not all(text.isdigit() and int(text) > 0 for text in texts):
        raise ValueError(f"--{name} takes whole numbers from 1, got {','.join(texts)}")
    return [int(text) for text in texts]


def median_of_blocks(
    work: Callable[[], Any], seconds: float = 1.0
) -> tuple[float, ...]:
    """Seconds per call: median, lowest and highest of five blocks after a warm-up."""
    import jax

    jax.block_until_ready(work())
    start = time.perf_counter()
    jax.block_until_ready(work())
    calls = max(1, round(seconds / max(time.perf_counter() - start, 1e-6)))
    blocks = []
    for _ in range(BLOCKS):
        start = time.perf_counter()
        for _ in range(calls):
            out = work()
        jax.block_until_ready(out)
        blocks.append((time.perf_counter() - start) / calls)
    blocks.sort()
    return blocks[BLOCKS // 2], blocks[0], blocks[-1]


def matmul_peak(size: int, copies: int, precision: str = "float32") -> float:
    """FLOP/s of one device in products of `copies` pairs of square matrices."""
    import jax
    import jax.numpy as jnp

    from jdql.runtime.distributed import PRECISIONS

    repeats = max(1, round(2e9 / (2 * size**3 * copies)))

    @jax.jit
    def products(x, y):
        return jax.lax.fori_loop(0, repeats, lambda _, x: (x @ y) * (0.1 / size), x)

    with jax.default_matmul_precision(PRECISIONS[precision]):
        key = jax.random.key(0)
        x, y = jax.random.normal(key, (2, copies, size, size), jnp.float32)
        best = median_of_blocks(lambda: products(x, y), seconds=0.5)[0]
    return repeats * copies * 2 * size**3 / best


def machine() -> Row:
    """What runs this: device, versions and its speed in matrix products."""
    import jax

    large, wide = (2048, 1), (256, 4)
    if jax.default_backend() != "cpu":
        large, wide = (8192, 1), (256, 512)
    return {
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "jax": jax.__version__,
        "large_square_gflops": matmul_peak(*large) / 1e9,
        "256_wide_gflops": matmul_peak(*wide) / 1e9,
    }


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
    import numpy as np

    from jdql.data.dataset import Dataset

    O, A = WALKER2D
    rng = np.random.default_rng(0)
    return Dataset(
        rng.standard_normal((rows, O), np.float32),
        rng.uniform(-1, 1, (rows, A)).astype(np.float32),
        rng.standard_normal(rows, np.float32),
        rng.standard_normal((rows, O), np.float32),
        np.zeros(rows, bool),
        np.zeros(rows, bool),
        np.array([rows], np.int32),
    )


def spec():
    """Walker2d's sizes."""
    from jdql.types import DataSpec

    O, A = WALKER2D
    return DataSpec(O, A, (-1.0,) * A, (1.0,) * A)


class Training(NamedTuple):
    """A compiled chunk of updates with what it needs, and how long that took."""

    chunk: Callable
    state: Any
    length: int
    compile_s: float
    xla_flops: float | None
    devices: int


def training(seeds: int, steps: int, batch: int, precision: str) -> Training:
    """Compiles a chunk of updates of `seeds` members, as the run loop makes it."""
    import jax
    import numpy as np

    from jdql.agents import diffusion_ql
    from jdql.runtime import distributed, members

    config = diffusion_ql.Config(grad_norm=1.0, diffusion_steps=steps, batch_size=batch)
    mesh = distributed.member_mesh(seeds)
    who = members.Members(np.arange(seeds, dtype=np.uint32), {})
    who = jax.device_put(who, distributed.sharded(mesh))
    data = jax.device_put(synthetic_data(), distributed.replicated(mesh))
    length = max(1, round(30 * 5 / steps)) if distributed.on_cpu() else 500
    make = diffusion_ql.make
    state = members.make_init(make, config, spec(), mesh)(who)
    with jax.default_matmul_precision(distributed.PRECISIONS[precision]):
        chunk = members.make_chunk(make, config, spec(), mesh, length)
        start = time.perf_counter()
        compiled = chunk.lower(state, who, data).compile()
        took = time.perf_counter() - start
    costs = compiled.cost_analysis() or {}
    return Training(
        lambda state: compiled(state, who, data),
        state,
        length,
        took,
        costs.get("flops"),
        mesh.size,
    )


def bench_train(settings: Settings, reference: Row) -> list[Row]:
    """Updates per second, and the share of the measured matrix-product speed."""
    import jax

    rows = []
    for precision in settings.precision:
        for steps in settings.steps:
            for batch in settings.batch:
                for seeds in settings.seeds:
                    case = training(seeds, steps, batch, precision)
                    state = [case.state]

                    def work(case=case, state=state):
                        state[0], metrics = case.chunk(state[0])
                        return metrics

                    times = median_of_blocks(work)
                    rate = case.length / times[0]
                    flops = update_flops(steps, batch) * rate * seeds
                    peak = reference["large_square_gflops"] * 1e9 * case.devices
                    wide = reference["256_wide_gflops"] * 1e9 * case.devices
                    stats = jax.devices()[0].memory_stats() or {}
                    rows.append(
                        {
                            "mode": "train",
                            "seeds": seeds,
                            "steps": steps,
                            "batch": batch,
                            "precision": precision,
                            "updates_per_s": rate,
                            "seed_updates_per_s": rate * seeds,
                            "range": [case.length * seeds / t for t in times[:0:-1]],
                            "gflop_by_hand": update_flops(steps, batch) / 1e9,
                            "gflops": flops / 1e9,
                            "of_large_square": flops / peak,
                            "of_256_wide": flops / wide,
                            "compile_s": case.compile_s,
                            "peak_memory_gib": _gib(stats.get("peak_bytes_in_use")),
                        }
                    )
    return rows


def _gib(count: int | None) -> float | None:
    return None if count is None else count / 2**30


def bench_act(settings: Settings, reference: Row) -> list[Row]:
    """Decisions per second of the acting policy, and the latency of one call."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jdql.agents import diffusion_ql

    del reference
    rows = []
    for steps in settings.steps:
        config = diffusion_ql.Config(diffusion_steps=steps)
        agent = diffusion_ql.make(config, spec())
        policy = agent.policy(jax.jit(agent.init)(jax.random.key(0)))

        @jax.jit
        def act(policy, observations, seed, agent=agent):
            keys = jax.random.split(jax.random.key(seed), len(observations))
            return jax.vmap(lambda o, k: agent.act(policy, (), o, k)[0])(
                observations, keys
            )

        for batch in settings.batch:
            observations = jnp.zeros((batch, WALKER2D[0]))
            np.asarray(act(policy, observations, 0))
            calls = []
            end = time.perf_counter() + 3.0
            while time.perf_counter() < end or len(calls) < 20:
                start = time.perf_counter()
                np.asarray(act(policy, observations, len(calls)))
                calls.append(time.perf_counter() - start)
            rows.append(
                {
                    "mode": "act",
                    "states": batch,
                    "steps": steps,
                    "candidates": config.candidates,
                    "decisions_per_s": batch / float(np.median(calls)),
                    "median_ms": 1e3 * float(np.median(calls)),
                    "p99_ms": 1e3 * float(np.percentile(calls, 99)),
                }
            )
    return rows


def bench_eval(settings: Settings, reference: Row) -> list[Row]:
    """Wall time of an evaluation against the bare simulator plus the bare policy."""
    import jax
    import numpy as np

    from jdql.agents import diffusion_ql
    from jdql.config import EvalConfig
    from jdql.envs import simulator
    from jdql.runtime import distributed, evaluate

    del reference
    rows = []
    for seeds in settings.seeds:
        agent = diffusion_ql.make(diffusion_ql.Config(), spec())
        keys = jax.vmap(jax.random.key)(np.arange(seeds))
        policies = jax.vmap(agent.policy)(jax.jit(jax.vmap(agent.init))(keys))
        config = EvalConfig(
            env="Walker2d-v5",
            episodes=10,
            env_kwargs={"terminate_when_unhealthy": False, "max_episode_steps": 100},
        )
        mesh = distributed.member_mesh(seeds)
        with evaluate.Rollouts(
            agent, range(seeds), spec(), config, mesh=mesh
        ) as rollouts:
            rollouts(policies)
            recorded: list[tuple] = []
            act = rollouts._act

            def recording(*inputs, act=act, recorded=recorded):
                recorded.append(inputs)
                return act(*inputs)

            whole, policy_only, simulator_only = [], [], []
            rollouts._act = recording
            rollouts(policies)
            rollouts._act = act
            environments = [simulator.make(config) for _ in range(seeds * 10)]
            for _ in range(BLOCKS):
                start = time.perf_counter()
                result = rollouts(policies)
                whole.append(time.perf_counter() - start)
                start = time.perf_counter()
                for inputs in recorded:
                    np.asarray(act(*inputs)[0])
                policy_only.append(time.perf_counter() - start)
                start = time.perf_counter()
                for environment in environments:
                    environment.reset(seed=0)
                    action = environment.action_space.sample()
                    for _ in range(100):
                        environment.step(action)
                simulator_only.append(time.perf_counter() - start)
        count = int(result.lengths.sum())
        ratio = np.array(whole) / (np.array(policy_only) + np.array(simulator_only))
        rows.append(
            {
                "mode": "eval",
                "seeds": seeds,
                "env_steps": count,
                "env_steps_per_s": count / float(np.median(whole)),
                "simulator_s": float(np.median(simulator_only)),
                "policy_s": float(np.median(policy_only)),
                "whole_s": float(np.median(whole)),
                "whole_over_parts": float(np.median(ratio)),
            }
        )
    return rows


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


def bench_compile(settings: Settings, reference: Row) -> list[Row]:
    """Seconds to compile a chunk of updates: anew, and from the persistent cache."""
    import tempfile

    import jax

    del reference
    rows = []
    for steps in settings.steps:
        with tempfile.TemporaryDirectory() as folder:
            jax.config.update("jax_compilation_cache_dir", folder)
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


_MODES: dict[str, Callable[[Settings, Row], list[Row]]] = {
    "train": bench_train,
    "act": bench_act,
    "eval": bench_eval,
    "load": bench_load,
    "compile": bench_compile,
}


def show(title: str, rows: list[Row]) -> None:
    """Prints rows as an aligned table."""
    columns = list(rows[0])
    cells = [columns] + [[_text(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}", flush=True)
    for line in cells:
        print("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)))
    sys.stdout.flush()


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list):
        return "-".join(_text(v) for v in value)
    return "-" if value is None else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return cli.run(program, define, __doc__ or "", argv, rest="modes")


if __name__ == "__main__":
    sys.exit(main())
