"""Programs that run a few times only: compiled in half the time, without optimising."""

from __future__ import annotations

import functools

import jax

once = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)
