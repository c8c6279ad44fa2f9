"""How to time, and the speed of the machine itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

BLOCKS = 5

Row = dict[str, Any]


class Settings(NamedTuple):
    """What to measure, parsed."""

    seeds: list[int]
    steps: list[int]
    batch: list[int]
    precision: list[str]


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
