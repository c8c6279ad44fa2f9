"""Flow matching on straight paths: x_t = (1 - t) noise + t x_0, t from 0 to 1.

The clean sample is x_0 as everywhere in jdql, the flow's time t is a number in [0, 1]
with 1 at the data (unlike the diffusion step k, which is 0 there), and the path is
Lipman et al. 2023, section 4.1 with sigma_min = 0.  Euler's method with the velocity is
the deterministic step of `reverse` at signal t and noise level 1 - t.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jdql.diffusion.chain import Chain, Guidance, step_at
from jdql.diffusion.constraints import constrain, unconstrained
from jdql.diffusion.losses import weighted_mean
from jdql.diffusion.process import from_the_left
from jdql.diffusion.reverse import ChainDraws, reverse_chain, reverse_steps
from jdql.diffusion.schedules import Schedule
from jdql.types import Array, Constraint, Denoiser, Float

# (x_t [*B A], t, a scalar or of shape [*B]) -> [*B A]
Velocity = Callable[[Array, Array], Array]


def _over(t: Float[Array, "..."], x: Float[Array, "*B A"]) -> Array:
    """`t` in the dtype of `x`, shaped to multiply it."""
    return from_the_left(jnp.asarray(t, x.dtype), x)


def interpolate(
    x0: Float[Array, "*B A"], time: Float[Array, "..."], noise: Float[Array, "*B A"]
) -> Float[Array, "*B A"]:
    """x_t = (1 - t) noise + t x_0; `time`: a scalar or of leading dimensions of x0."""
    t = _over(time, x0)
    return (1 - t) * noise + t * x0


def flow_loss(
    predict: Velocity,
    x0: Float[Array, "B *H A"],
    time: Float[Array, " B"],
    noise: Float[Array, "B *H A"],
    *,
    error: Callable[[Array], Array] = jnp.square,
    weights: Float[Array, "..."] | None = None,
    clamp: Constraint = unconstrained,
) -> Float[Array, ""]:
    """E |predict(x_t, t) - (x_0 - noise)|^2, a mean over batch and entries.

    Lipman et al. 2023, eq. 23 with sigma_min = 0.

    Args:
      predict: the velocity network, conditioning closed over.
      x0: clean samples: actions `[B, A]`, chunks or trajectories `[B, H, A]`.
      time: in [0, 1], usually uniform.
      noise: standard normal.
      error: of the difference, entry by entry; it may reduce trailing axes.
      weights: multiplies the errors from the left; see `losses.denoising_loss`.
      clamp: the in-painting that samples will be drawn with; see there as well.

    Returns:
      The scalar loss.

    Raises:
      ValueError: weights of more axes than the errors.
    """
    x_t = clamp(interpolate(x0, time, noise))
    errors = error(clamp(predict(x_t, time)) - clamp(x0 - noise))
    return weighted_mean(errors, weights)


def check_steps(steps: int) -> int:
    """Returns the number of steps; raises ValueError when there are none."""
    if steps < 1:
        raise ValueError(f"flow_steps must be at least 1, got {steps}")
    return steps


def levels(steps: int) -> Schedule:
    """The noise levels of Euler's method, at t = 1 - 1/n, ..., 1/n, 0.

    They are those of x_t = t x_0 + (1 - t) noise, whose variance is not preserved.
    `beta` is the variance that a step adds as it scales the sample by t' / t.
    """
    time = np.arange(steps)[::-1] / steps
    before = np.append(1.0, time[:-1])
    beta = (1 - time) ** 2 - (time / before * (1 - before)) ** 2
    return Schedule(beta, time, 1 - time)


def euler(
    velocity: Velocity,
    start: Float[Array, "*B A"],
    steps: int,
    *,
    guide: Guidance | None = None,
    clamp: Constraint | None = None,
    unroll: int = 1,
) -> Float[Array, "*B A"]:
    """Follows dx/dt = velocity(x, t) from noise (t = 0) to a sample (t = 1).

    Euler's method at t = i / steps, i = 0..steps-1 (a scalar for all rows);
    differentiable from end to end.

    Args:
      velocity: of the flow.
      start: standard normal noise, all the noise there is.
      steps: number of network calls, at least 1.
      guide: changes x0_hat = x + (1 - t) v (`guidance`); its k is the time t.
      clamp: holds known entries (`constraints.inpaint`): of the start, of every
        sample, of every x0_hat and of the result, there exactly.
      unroll: iterations of the scan laid out in a row: faster, slower to compile.

    Returns:
      The sample, not clipped.

    Raises:
      ValueError: for fewer than one step, and for a guide that flows cannot have.
    """
    check_steps(steps)
    if guide is not None or clamp is not None:
        held = unconstrained if clamp is None else clamp
        return _euler_of_denoiser(velocity, start, steps, guide, held, unroll)

    def step(x: Array, t: Array) -> tuple[Array, None]:
        return x + velocity(x, t) / steps, None

    times = jnp.asarray(np.arange(steps) / steps, start.dtype)
    x, _ = jax.lax.scan(step, start, times, unroll=unroll)
    return x


def _euler_of_denoiser(
    velocity: Velocity,
    start: Array,
    steps: int,
    guide: Guidance | None,
    clamp: Constraint,
    unroll: int,
) -> Array:
    """Euler's method in terms of x0_hat: the deterministic step of `reverse`."""
    schedule = levels(steps)
    table = reverse_steps(schedule, "deterministic")

    def of_level(velocity: Velocity) -> Denoiser:
        denoise = denoiser(velocity)
        return lambda x, i: denoise(x, step_at(schedule.signal.astype(x.dtype), i))

    held = functools.partial(constrain, constraint=clamp)
    chain = Chain(schedule, schedule.signal, of_level, held, clamp, table)
    free = of_level(velocity)
    guided = held(free) if guide is None else guide(free, chain)
    draws = ChainDraws(clamp(start), start[None][:0])
    return reverse_chain(guided, table, draws, constraint=clamp, unroll=unroll)


def x0_from_velocity(x_t: Array, time: Float[Array, "..."], velocity: Array) -> Array:
    """The clean sample that a velocity implies, x_t + (1 - t) v."""
    return x_t + (1 - _over(time, x_t)) * velocity


def velocity_from_x0(x_t: Array, time: Float[Array, "..."], x0: Array) -> Array:
    """The velocity that a clean sample implies, (x_0 - x_t) / (1 - t), for t < 1."""
    return (x0 - x_t) / (1 - _over(time, x_t))


def denoiser(velocity: Velocity) -> Velocity:
    """Wraps a velocity as a denoiser `(x_t, t) -> x0_hat`; see `to_velocity`."""

    def denoise(x_t: Float[Array, "*B A"], time: Float[Array, "..."]) -> Array:
        return x0_from_velocity(x_t, time, velocity(x_t, time))

    return denoise


def to_velocity(denoiser: Velocity) -> Velocity:
    """Wraps a denoiser `(x_t, t) -> x0_hat` (guided, clipped) as a velocity, t < 1."""

    def velocity(x_t: Float[Array, "*B A"], time: Float[Array, "..."]) -> Array:
        return velocity_from_x0(x_t, time, denoiser(x_t, time))

    return velocity
