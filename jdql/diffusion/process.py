"""The forward process and the conversions among what a network may predict.

Everything follows from x_k = signal[k] x_0 + noise[k] eps (Ho et al. 2020, eq. 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jdql.diffusion.schedules import Schedule
from jdql.types import Array, Denoiser, Float, Int


def from_the_left(values: Array, x: Array) -> Array:
    """`values` shaped to multiply `x`: a scalar, or of leading axes of `x`.

    Raises:
      ValueError: values of more axes than `x`.
    """
    if values.ndim > x.ndim:
        raise ValueError(
            f"values of shape {values.shape} have more axes than what they multiply, "
            f"of shape {x.shape}: give a scalar, or one number for each leading axis"
        )
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))


def at(table: np.ndarray, k: Int[Array, "..."], x: Float[Array, "*B A"]) -> Array:
    """`table[k]` in the dtype of `x`, shaped to multiply `x`.

    `k` is a scalar or has leading dimensions of `x`.
    """
    return from_the_left(jnp.asarray(table, x.dtype)[k], x)


def forward_noise(
    schedule: Schedule,
    x0: Float[Array, "*B A"],
    k: Int[Array, "..."],
    noise: Float[Array, "*B A"],
) -> Float[Array, "*B A"]:
    """x_k = sqrt(abar_k) x_0 + sqrt(1 - abar_k) noise (Ho et al. 2020, eq. 4)."""
    return at(schedule.signal, k, x0) * x0 + at(schedule.noise, k, x0) * noise


def x0_from_epsilon(
    schedule: Schedule, x_k: Array, k: Int[Array, "..."], epsilon: Array
) -> Array:
    """The clean sample that `epsilon` implies, (x_k - noise eps) / signal."""
    scale = at(1 / schedule.signal, k, x_k)
    return scale * x_k - at(schedule.noise / schedule.signal, k, x_k) * epsilon


def epsilon_from_x0(
    schedule: Schedule, x_k: Array, k: Int[Array, "..."], x0: Array
) -> Array:
    """The noise that `x0` implies, (x_k - signal x_0) / noise."""
    scale = at(1 / schedule.noise, k, x_k)
    return scale * x_k - at(schedule.signal / schedule.noise, k, x_k) * x0


def v_from_x0(schedule: Schedule, x_k: Array, k: Int[Array, "..."], x0: Array) -> Array:
    """v = signal eps - noise x_0 (Salimans & Ho 2022, appendix D)."""
    epsilon = epsilon_from_x0(schedule, x_k, k, x0)
    return at(schedule.signal, k, x_k) * epsilon - at(schedule.noise, k, x_k) * x0


def x0_from_v(schedule: Schedule, x_k: Array, k: Int[Array, "..."], v: Array) -> Array:
    """x_0 = signal x_k - noise v (Salimans & Ho 2022, appendix D)."""
    return at(schedule.signal, k, x_k) * x_k - at(schedule.noise, k, x_k) * v


def score_from_epsilon(
    schedule: Schedule, k: Int[Array, "..."], epsilon: Array
) -> Array:
    """grad log q(x_k) = -eps / noise (Song et al. 2021)."""
    return -epsilon / at(schedule.noise, k, epsilon)


class Parameterisation(NamedTuple):
    """What a network predicts: how to read x_0 off it, and what to train it on.

    Attributes:
      to_x0: `(schedule, x_k, k, prediction) -> x0_hat`.
      target: `(schedule, x0, k, noise) -> prediction of a perfect network`.
    """

    to_x0: Callable[[Schedule, Array, Array, Array], Array]
    target: Callable[[Schedule, Array, Array, Array], Array]


def _v_target(schedule: Schedule, x0: Array, k: Array, noise: Array) -> Array:
    return at(schedule.signal, k, x0) * noise - at(schedule.noise, k, x0) * x0


EPSILON = Parameterisation(x0_from_epsilon, lambda schedule, x0, k, noise: noise)
X0 = Parameterisation(
    lambda schedule, x_k, k, prediction: prediction,
    lambda schedule, x0, k, noise: x0,
)
V = Parameterisation(x0_from_v, _v_target)


def denoiser(
    schedule: Schedule,
    predict: Callable[[Array, Array], Array],
    parameterisation: Parameterisation = EPSILON,
) -> Denoiser:
    """Wraps a network `(x_k, k) -> prediction` as a denoiser `(x_k, k) -> x0_hat`."""

    def denoise(x_k: Float[Array, "*B A"], k: Int[Array, "..."]) -> Array:
        return parameterisation.to_x0(schedule, x_k, k, predict(x_k, k))

    return denoise
