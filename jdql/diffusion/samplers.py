"""Every way to sample a diffusion model, by name: what agents call to act.

| name | step rule | noise levels |
|---|---|---|
| `ancestral` | `reverse.posterior`, or another variance rule | even in k |
| `ddim` | `reverse.deterministic` | even in k |
| `flow` | the same: Euler's method on straight paths | even in a / (a + s) |
| `dpmpp_1` | the same: DPM-Solver++ of order 1 | even in log(a / s) |
| `dpmpp_2m` | DPM-Solver++ of order 2, multistep | even in log(a / s) |
| `edm_heun` | Heun's method of order 2, with churn if asked | even in (s / a)^(1/7) |

The deterministic step x' = a' x0_hat + s' eps_hat is Euler's method in two clocks.
Divided by a it is x'/a' - x/a = (s'/a' - s/a) eps_hat, Euler's in sigma = s / a on
Karras et al.'s process; divided by a + s it is Euler's in the time a / (a + s) on the
straight path of a flow.  The samplers that share it differ in their levels only.

All start at k = K - 1, and all but those of one step visit k = 0, from which the last
step goes to the clean sample: `steps` network calls, 2 `steps` - 1 for `edm_heun`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jdql.diffusion import constraints, dpm_solver, edm, process, reverse, schedules
from jdql.diffusion.reverse import ChainDraws
from jdql.diffusion.schedules import Grid, Schedule
from jdql.types import Array, Constraint, Denoiser, Float


class Sampler(NamedTuple):
    """A sampler of a schedule.

    Attributes:
      draws: noise arrays that a chain consumes, as in `draw_chain(key, draws, shape)`;
        0 for an ordinary differential equation, which takes the start alone.
      sample: `(predict, ChainDraws) -> x_0`, where `predict(x_k, k)` is the network's
        prediction, conditioning closed over; k is a scalar, integral where the sampler
        visits the trained steps alone and float where it goes between them.
    """

    draws: int
    sample: Callable[
        [Callable[[Array, Array], Array], ChainDraws], Float[Array, "*B A"]
    ]


class Chain(NamedTuple):
    """A sampler without its network.

    Attributes:
      k: `[m]` ascending steps at which the network is called.
      draws: see `Sampler`.
      run: `(denoiser, draws) -> x_0`; the denoiser's step is an index into `k`.
    """

    k: np.ndarray
    draws: int
    run: Callable[[Denoiser, ChainDraws], Array]


class Loop(NamedTuple):
    """How the scan over the steps is compiled; see `reverse.reverse_chain`."""

    unroll: int = 1
    remat: bool = False


def _chain(
    schedule: Schedule,
    k: np.ndarray,
    variance: str,
    loop: Loop,
    step_constraint: Constraint = constraints.unconstrained,
) -> Chain:
    table = reverse.reverse_steps(schedules.refine(schedule, k), variance)

    def run(denoiser: Denoiser, draws: ChainDraws) -> Array:
        return reverse.reverse_chain(
            denoiser, table, draws, constraint=step_constraint, **loop._asdict()
        )

    return Chain(k, 0 if variance == "deterministic" else table.steps, run)


def _ancestral(
    schedule: Schedule,
    steps: int,
    variance: str,
    loop: Loop,
    step_constraint: Constraint = constraints.unconstrained,
) -> Chain:
    if steps > schedule.steps:
        raise ValueError(
            f"sample_steps must be at most diffusion_steps, {schedule.steps}, for the "
            f"ancestral sampler, got {steps}: take fewer or another sampler"
        )
    k = schedules.even_grid(schedule, steps)
    return _chain(schedule, k, variance, loop, step_constraint)


def _deterministic(grid: Grid):
    def build(
        schedule: Schedule, steps: int, variance: str, loop: Loop, grid: Grid = grid
    ) -> Chain:
        del variance
        return _chain(schedule, grid(schedule, steps), "deterministic", loop)

    return build


def _multistep(
    schedule: Schedule,
    steps: int,
    variance: str,
    loop: Loop,
    grid: Grid = schedules.log_snr_grid,
    lower_order_last: bool = False,
) -> Chain:
    del variance
    k = grid(schedule, steps)
    table = dpm_solver.multistep_steps(
        schedules.refine(schedule, k), lower_order_last=lower_order_last
    )

    def run(denoiser: Denoiser, draws: ChainDraws) -> Array:
        return dpm_solver.multistep_chain(
            denoiser, table, draws.start, **loop._asdict()
        )

    return Chain(k, 0, run)


def _heun(
    schedule: Schedule,
    steps: int,
    variance: str,
    loop: Loop,
    grid: Grid = schedules.karras_grid,
    churn: edm.Churn = edm.NO_CHURN,
) -> Chain:
    del variance
    table, k = edm.heun_steps(schedule, grid(schedule, steps), churn)

    def run(denoiser: Denoiser, draws: ChainDraws) -> Array:
        return edm.heun_chain(denoiser, table, draws, **loop._asdict())

    return Chain(k, steps if np.any(table.noise) else 0, run)


SAMPLERS: dict[str, Callable[..., Chain]] = {
    "ancestral": _ancestral,
    "ddim": _deterministic(schedules.even_grid),
    "flow": _deterministic(schedules.flow_grid),
    "dpmpp_1": _deterministic(schedules.log_snr_grid),
    "dpmpp_2m": _multistep,
    "edm_heun": _heun,
}


def make_sampler(
    schedule: Schedule,
    name: str,
    steps: int | None = None,
    *,
    variance: str = "posterior",
    constraint: Constraint = constraints.unconstrained,
    parameterisation: process.Parameterisation = process.EPSILON,
    unroll: int = 1,
    remat: bool = False,
    **options: Any,
) -> Sampler:
    """The sampler called `name`, for networks trained on `schedule`.

    `ancestral`, and `ddim` of at most K steps, stop at trained steps only.  Between
    them the network is on its own: slow sinusoids of a step carry over, fast features
    of it (learned Fourier features, K small) may not.

    Args:
      schedule: of K steps.
      name: a key of `SAMPLERS`.
      steps: of the chain, at least 1; None takes K.  The ancestral sampler takes K at
        most, the others any number, since they may stop between the trained steps.
      variance: of the ancestral sampler (`reverse.VARIANCES`); others have none.
      constraint: obeyed by every estimate of x_0 and by the sample.
      parameterisation: what the network predicts.
      unroll: iterations of the scan laid out in a row: faster, slower to compile.
      remat: recompute the network in the backward pass instead of storing it.
      **options: of some samplers alone: `grid`, a `schedules.Grid` in the place of
        the sampler's own (all but `ancestral`); `step_constraint`, obeyed by the
        sample after every step (`ancestral`); `lower_order_last` (`dpmpp_2m`);
        `churn`, an `edm.Churn` (`edm_heun`).

    Returns:
      The sampler.

    Raises:
      ValueError: an unknown name or variance, or a number of steps that the sampler
        cannot take.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {sorted(SAMPLERS)}, got {name!r}")
    steps = schedule.steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"sample_steps must be at least 1, got {steps}")
    if steps > 1 == schedule.steps:
        raise ValueError(f"with diffusion_steps 1, sample_steps must be 1, got {steps}")
    chain = SAMPLERS[name](schedule, steps, variance, Loop(unroll, remat), **options)
    levels = schedules.refine(schedule, chain.k)

    def sample(predict: Callable[[Array, Array], Array], draws: ChainDraws) -> Array:
        denoiser = process.denoiser(
            levels, _at_levels(predict, chain.k), parameterisation
        )
        denoiser = constraints.constrain(denoiser, constraint)
        return constraint(chain.run(denoiser, draws))

    return Sampler(chain.draws, sample)


def _at_levels(predict: Callable[[Array, Array], Array], k: np.ndarray):
    """The network told the index of a level in place of its step."""
    if np.array_equal(k, np.arange(len(k))):
        return predict  # they are the same
    integral = np.array_equal(k, np.rint(k))
    steps = k.astype(np.int32) if integral else k
    return lambda x, i: predict(x, jnp.asarray(steps)[i])
