"""Programs that run a few times only: compiled in half the time, without optimising."""

from __future__ import annotations

import functools

import jax

from jdql.runtime.members import ONCE

once = functools.partial(jax.jit, compiler_options=ONCE)
