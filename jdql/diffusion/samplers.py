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

All but those with a `grid` of their own start at k = K - 1, and all of more than one
step visit k = 0, from which the last step goes to the clean sample: `steps` network
calls, 2 `steps` - 1 for `edm_heun`.

What is sampled for, guidance and known entries, comes with the call:

    sampler.sample(
        predict,
        draws,
        guide=guidance.classifier_free(unconditional, 1.2),
        clamp=constraints.inpaint(mask, values),
    )
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jdql.diffusion import constraints, dpm_solver, edm, process, reverse, schedules
from jdql.diffusion.chain import Chain, Guidance, Network, step_at
from jdql.diffusion.reverse import ChainDraws, ReverseSteps
from jdql.diffusion.schedules import Grid, Schedule
from jdql.types import Array, Constraint, Denoiser, Float


@runtime_checkable
class Sample(Protocol):
    """Draws samples; see `Sampler.sample`."""

    def __call__(
        self,
        predict: Network,
        draws: ChainDraws,
        guide: Guidance | None = None,
        clamp: Constraint | None = None,
        whole: bool = False,
    ) -> Float[Array, "..."]:
        """Returns the samples, of the shape of `draws.start`; or the whole chain."""
        ...


class Sampler(NamedTuple):
    """A sampler of a schedule, for samples of any shape: `[*B, A]`, `[*B, H, A]`.

    Attributes:
      draws: noise arrays that a chain consumes, as in `draw_chain(key, draws, shape)`;
        0 for an ordinary differential equation, which takes the start alone.
      sample: `(predict, draws, guide=None, clamp=None) -> x_0`.  `predict(x_k, k)` is
        the network's prediction, conditioning closed over; k is a scalar, integral
        where the sampler visits the trained steps alone and float where it goes between
        them.  `guide` changes the denoiser (`guidance`).  `clamp` holds known entries
        (`constraints.inpaint`): of the start, of every sample that the network is
        shown, of every x0_hat and of the result, there exactly.  With `whole=True` the
        result is the whole chain `[n + 1, *B, A]`, from its noise to x_0, which is the
        same as without.
    """

    draws: int
    sample: Sample


class Scheme(NamedTuple):
    """A sampler without its network.

    Attributes:
      k: `[m]` ascending steps at which the network is called.
      draws: see `Sampler`.
      run: `(denoiser, draws, clamp, whole) -> x_0`; the denoiser's step is an index
        into `k`, and the clamp is obeyed by what every step makes, not by the start.
        If `whole`, all samples of the chain.
      steps: see `Chain`.
      clip_direction: whether a step goes along the eps_hat of the constrained x0_hat.
    """

    k: np.ndarray
    draws: int
    run: Callable[[Denoiser, ChainDraws, Constraint | None, bool], Array]
    steps: ReverseSteps | None = None
    clip_direction: bool = True


class Loop(NamedTuple):
    """How the scan over the steps is compiled; see `reverse.reverse_chain`."""

    unroll: int = 1
    remat: bool = False


def _single_step(
    schedule: Schedule,
    k: np.ndarray,
    variance: str,
    loop: Loop,
    step_constraint: Constraint = constraints.unconstrained,
    clip_direction: bool = True,
) -> Scheme:
    table = reverse.reverse_steps(schedules.refine(schedule, k), variance)

    def run(
        denoiser: Denoiser, draws: ChainDraws, clamp: Constraint | None, whole: bool
    ) -> Array:
        held = constraints.in_turn(step_constraint, clamp or constraints.unconstrained)
        return reverse.reverse_chain(
            denoiser, table, draws, constraint=held, whole=whole, **loop._asdict()
        )

    draws = 0 if variance == "deterministic" else table.steps
    return Scheme(k, draws, run, table, clip_direction)


def _ancestral(
    schedule: Schedule,
    steps: int,
    variance: str,
    loop: Loop,
    step_constraint: Constraint = constraints.unconstrained,
) -> Scheme:
    if steps > schedule.steps:
        raise ValueError(
            f"sample_steps must be at most diffusion_steps, {schedule.steps}, for the "
            f"ancestral sampler, got {steps}: take fewer or another sampler"
        )
    k = schedules.even_grid(schedule, steps)
    return _single_step(schedule, k, variance, loop, step_constraint)


def _deterministic(grid: Grid):
    def build(
        schedule: Schedule,
        steps: int,
        variance: str,
        loop: Loop,
        grid: Grid = grid,
        clip_direction: bool = True,
    ) -> Scheme:
        del variance
        return _single_step(
            schedule,
            grid(schedule, steps),
            "deterministic",
            loop,
            clip_direction=clip_direction,
        )

    return build


def _multistep(
    schedule: Schedule,
    steps: int,
    variance: str,
    loop: Loop,
    grid: Grid = schedules.log_snr_grid,
    lower_order_last: bool = False,
) -> Scheme:
    del variance
    k = grid(schedule, steps)
    table = dpm_solver.multistep_steps(
        schedules.refine(schedule, k), lower_order_last=lower_order_last
    )

    def run(
        denoiser: Denoiser, draws: ChainDraws, clamp: Constraint | None, whole: bool
    ) -> Array:
        held = clamp or constraints.unconstrained
        return dpm_solver.multistep_chain(
            denoiser, table, draws.start, constraint=held, whole=whole, **loop._asdict()
        )

    return Scheme(k, 0, run)


def _heun(
    schedule: Schedule,
    steps: int,
    variance: str,
    loop: Loop,
    grid: Grid = schedules.karras_grid,
    churn: edm.Churn = edm.NO_CHURN,
) -> Scheme:
    del variance
    table, k = edm.heun_steps(schedule, grid(schedule, steps), churn)

    def run(
        denoiser: Denoiser, draws: ChainDraws, clamp: Constraint | None, whole: bool
    ) -> Array:
        return edm.heun_chain(
            denoiser, table, draws, constraint=clamp, whole=whole, **loop._asdict()
        )

    return Scheme(k, steps if np.any(table.noise) else 0, run)


SAMPLERS: dict[str, Callable[..., Scheme]] = {
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

    `ancestral`, and `ddim` of at most K steps, call the network at steps k that it was
    trained at.  The others call it between them too, where it has to interpolate.  A
    network that is told k by slow sinusoids does so well.  One that can tell k finely
    (learned Fourier features) and was trained on few steps may predict anything there.

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
        sample after every step (`ancestral`); `clip_direction` (`ddim`, `flow`,
        `dpmpp_1`): False steps along the eps_hat from before x0_hat was constrained,
        as the DDIM of diffusers does; `lower_order_last` (`dpmpp_2m`); `churn`, an
        `edm.Churn` (`edm_heun`).

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
    scheme = SAMPLERS[name](schedule, steps, variance, Loop(unroll, remat), **options)

    def sample(
        predict: Network,
        draws: ChainDraws,
        guide: Guidance | None = None,
        clamp: Constraint | None = None,
        whole: bool = False,
    ) -> Array:
        clamped = clamp or constraints.unconstrained
        held = constraints.in_turn(constraint, clamped)
        chain = _chain(schedule, scheme, parameterisation, held, clamped)
        denoiser = chain.denoiser(predict)
        guided = chain.constrain(denoiser) if guide is None else guide(denoiser, chain)
        draws = draws._replace(start=clamped(draws.start))
        made = scheme.run(guided, draws, clamp, whole)
        return made.at[-1].set(held(made[-1])) if whole else held(made)

    return Sampler(scheme.draws, sample)


def _chain(
    schedule: Schedule,
    scheme: Scheme,
    parameterisation: process.Parameterisation,
    held: Constraint,
    clamp: Constraint,
) -> Chain:
    """What guides may know of the chain; `held` is obeyed by x0_hat."""
    levels = schedules.refine(schedule, scheme.k)
    integral = np.array_equal(scheme.k, np.rint(scheme.k))
    k = scheme.k.astype(np.int32) if integral else scheme.k

    def denoiser(predict: Network) -> Denoiser:
        return process.denoiser(
            levels, lambda x, i: predict(x, step_at(k, i)), parameterisation
        )

    def constrain(denoiser: Denoiser) -> Denoiser:
        if scheme.clip_direction or scheme.steps is None:
            return constraints.constrain(denoiser, held)
        return reverse.keep_direction(denoiser, held, levels, scheme.steps)

    return Chain(levels, k, denoiser, constrain, clamp, scheme.steps)
