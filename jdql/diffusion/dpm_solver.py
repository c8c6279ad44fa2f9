"""DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), the multistep solver in x_0.

With lambda = log(signal / noise) and h its increase over a step, order 1 is

    x' = (s' / s) x + a' (1 - e^-h) x0_hat,

and 1 - e^-h = 1 - s' a / (a' s) makes this the deterministic step of `reverse`: DDIM.
Order 2 (2M, algorithm 2) puts an extrapolation in the place of x0_hat,

    x0_hat + h / (2 h_before) (x0_hat - x0_hat_before),

h_before being that of the step before.  So a chain of order 2 is DDIM's table and one
more number a step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdql.diffusion.constraints import unconstrained
from jdql.diffusion.reverse import ReverseSteps, behind, reverse_steps
from jdql.diffusion.schedules import Schedule, log_snr
from jdql.types import Array, Constraint, Denoiser, Float


class MultistepSteps(NamedTuple):
    """A chain of order 2 as data; row 0 is applied first and is the noisiest.

    Attributes:
      base: DDIM's steps.
      ahead: `[n]`, weight of x0_hat - x0_hat_before; 0 where the order is 1: in the
        first row, which has nothing before it, and in the last, whose h is infinite.
    """

    base: ReverseSteps
    ahead: Any


def multistep_steps(
    schedule: Schedule, *, lower_order_last: bool = False
) -> MultistepSteps:
    """The chain of order 2 that visits every level and ends in a clean sample.

    Args:
      schedule: its levels; uniform in lambda (`schedules.log_snr_grid`) or nearly so,
        or h / h_before is large in the last steps and the extrapolation wild.
      lower_order_last: order 1 also in the step to the last level, for such grids.

    Returns:
      The table of the chain, float64.
    """
    h = np.diff(log_snr(schedule)[::-1])
    ahead = np.zeros(schedule.steps)
    ahead[1:-1] = h[1:] / (2 * h[:-1])
    if lower_order_last:
        ahead[-2:] = 0.0
    return MultistepSteps(reverse_steps(schedule, "deterministic"), ahead)


def multistep_chain(
    denoiser: Denoiser,
    steps: MultistepSteps,
    start: Float[Array, "*B A"],
    *,
    constraint: Constraint = unconstrained,
    unroll: int = 1,
    remat: bool = False,
    whole: bool = False,
) -> Float[Array, "..."]:
    """Runs the chain from `start`; see `reverse.reverse_chain` for the options."""

    def step(carry: tuple[Array, Array], row: MultistepSteps):
        x, before = carry
        x0 = denoiser(x, row.base.k)
        ahead = x0 + row.ahead * (x0 - before)
        x = constraint(row.base.x0 * ahead + row.base.xk * x)
        return (x, x0), x if whole else None

    cast = [jnp.asarray(c, start.dtype) for c in (*steps.base[1:], steps.ahead)]
    table = MultistepSteps(ReverseSteps(jnp.asarray(steps.base.k), *cast[:3]), cast[3])
    body = jax.checkpoint(step) if remat else step
    first = start, jnp.zeros_like(start)
    (x, _), made = jax.lax.scan(body, first, table, unroll=unroll)
    return behind(start, made) if whole else x
