"""Flow matching on straight paths: x_t = (1 - t) noise + t x_0, t from 0 to 1.

The clean sample is x_0 as everywhere in jdql, the flow's time t is a number in [0, 1]
with 1 at the data (unlike the diffusion step k, which is 0 there), and the path is
Lipman et al. 2023, section 4.1 with sigma_min = 0.  Euler's method with the velocity is
the deterministic step of `reverse` at signal t and noise level 1 - t.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jdql.diffusion.losses import squared_error
from jdql.types import Array, Float

# (x_t [*B A], t, a scalar or of shape [*B]) -> [*B A]
Velocity = Callable[[Array, Array], Array]


def _over(t: Float[Array, "..."], x: Float[Array, "*B A"]) -> Array:
    """`t` in the dtype of `x`, shaped to multiply it."""
    t = jnp.asarray(t, x.dtype)
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def interpolate(
    x0: Float[Array, "*B A"], time: Float[Array, "..."], noise: Float[Array, "*B A"]
) -> Float[Array, "*B A"]:
    """x_t = (1 - t) noise + t x_0; `time`: a scalar or of leading dimensions of x0."""
    t = _over(time, x0)
    return (1 - t) * noise + t * x0


def flow_loss(
    predict: Velocity,
    x0: Float[Array, "B A"],
    time: Float[Array, " B"],
    noise: Float[Array, "B A"],
    *,
    error: Callable[[Array], Array] = squared_error,
    weights: Float[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """E |predict(x_t, t) - (x_0 - noise)|^2, a mean over batch and dimensions.

    Lipman et al. 2023, eq. 23 with sigma_min = 0.

    Args:
      predict: the velocity network, conditioning closed over.
      x0: clean samples (actions).
      time: in [0, 1], usually uniform.
      noise: standard normal.
      error: `[B, A] -> [B]`.
      weights: multiplies the error of each sample.

    Returns:
      The scalar loss.
    """
    errors = error(predict(interpolate(x0, time, noise), time) - (x0 - noise))
    return jnp.mean(errors if weights is None else weights * errors)


def check_steps(steps: int) -> int:
    """Returns the number of steps; raises ValueError when there are none."""
    if steps < 1:
        raise ValueError(f"flow_steps must be at least 1, got {steps}")
    return steps


def euler(
    velocity: Velocity, start: Float[Array, "*B A"], steps: int, *, unroll: int = 1
) -> Float[Array, "*B A"]:
    """Follows dx/dt = velocity(x, t) from noise (t = 0) to a sample (t = 1).

    Euler's method at t = i / steps, i = 0..steps-1 (a scalar for all rows);
    differentiable from end to end.

    Args:
      velocity: of the flow.
      start: standard normal noise, all the noise there is.
      steps: number of network calls, at least 1.
      unroll: iterations of the scan laid out in a row: faster, slower to compile.

    Returns:
      The sample, not clipped.

    Raises:
      ValueError: for fewer than one step.
    """
    check_steps(steps)

    def step(x: Array, t: Array) -> tuple[Array, None]:
        return x + velocity(x, t) / steps, None

    times = jnp.asarray(np.arange(steps) / steps, start.dtype)
    x, _ = jax.lax.scan(step, start, times, unroll=unroll)
    return x


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
