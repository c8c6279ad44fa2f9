"""How to time, and the speed of the machine itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

BLOCKS = 5

Row = dict[str, Any]
Rounds = dict[str, list[float]]  # by name, seconds per call in each round


class Settings(NamedTuple):
    """What to measure, parsed.

    Attributes:
      seeds: members at once.
      steps: of diffusion.
      batch: rows of an update.
      precision: of matrix products.
      states: that are planned for at once.
      agents: systems whose acting is measured, by name; all that are listed if none is.
      size: of theirs, "authors" or "cpu".
    """

    seeds: list[int]
    steps: list[int]
    batch: list[int]
    precision: list[str]
    states: list[int]
    agents: list[str]
    size: str


def rounds(works: Mapping[str, Callable[[], Any]], seconds: float = 1.0) -> Rounds:
    """Seconds per call of several works that take turns.

    On a shared machine what is compared must be measured in turns: its speed changes by
    a third within minutes, and the ratio of two figures of one round does not.

    Args:
      works: by name; each is called once before anything is timed.
      seconds: of one work in one round, about.

    Returns:
      By name, the seconds per call in each of five rounds.
    """
    import jax

    calls = {}
    for name, work in works.items():
        jax.block_until_ready(work())
        start = time.perf_counter()
        jax.block_until_ready(work())
        calls[name] = max(1, round(seconds / max(time.perf_counter() - start, 1e-6)))
    taken: Rounds = {name: [] for name in works}
    for _ in range(BLOCKS):
        for name, work in works.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                out = work()
            jax.block_until_ready(out)
            taken[name].append((time.perf_counter() - start) / calls[name])
    return taken


class Products(NamedTuple):
    """Matrix products to compare with: what runs them, and their FLOPs a call."""

    work: Callable[[], Any]
    flops: float


def products(
    size: int, copies: int, precision: str = "float32", devices: int = 1
) -> Products:
    """A chain of products of `copies` pairs of square matrices, on every device."""
    import jax
    import jax.numpy as jnp

    from jdql.runtime import distributed

    repeats = max(1, round(2e9 / (2 * size**3 * copies)))

    def chain(pair, _):
        x, y = pair
        return jax.lax.fori_loop(
            0, repeats, lambda _, x: jnp.matmul(x, y) * (0.1 / size), x
        )

    mesh = distributed.member_mesh(devices)
    pairs = jax.random.normal(jax.random.key(0), (devices, 2, copies, size, size))
    pairs = jax.device_put(pairs, distributed.sharded(mesh))
    chains = jax.jit(distributed.map_members(chain, mesh))
    with jax.default_matmul_precision(distributed.PRECISIONS[precision]):
        compiled = chains.lower(pairs, ()).compile()
    flops = devices * repeats * copies * 2.0 * size**3
    return Products(lambda: compiled(pairs, ()), flops)


def references(precision: str = "float32", devices: int = 1) -> dict[str, Products]:
    """The two rates that an update is compared with, of so many devices together.

    `large_square`: the best that the machine does.  `256_wide`: as much as it does in
    batched products of the width that the networks have.
    """
    import jax

    cpu = jax.default_backend() == "cpu"
    return {
        "large_square": products(2048 if cpu else 8192, 1, precision, devices),
        "256_wide": products(256, 4 if cpu else 512, precision, devices),
    }


def machine() -> Row:
    """What runs this: device, versions and its speed in matrix products."""
    import jax

    known = references(devices=len(jax.devices()))
    taken = rounds({name: product.work for name, product in known.items()}, 0.5)
    rates = {
        f"{name}_gflops": known[name].flops / statistics.median(taken[name]) / 1e9
        for name in known
    }
    return {
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "jax": jax.__version__,
        **rates,
    }
