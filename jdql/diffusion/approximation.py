"""The clean sample and its likelihood from one network call, in place of a chain's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jdql.checks import one_of
from jdql.diffusion.losses import squared_error
from jdql.diffusion.process import at, forward_noise, x0_from_epsilon
from jdql.diffusion.schedules import Schedule
from jdql.types import Array, Constraint, Float, Int


def approximate(
    schedule: Schedule,
    predict: Callable[[Array, Array], Array],
    x0: Float[Array, "B A"],
    k: Int[Array, " B"],
    noise: Float[Array, "B A"],
    constraint: Constraint,
) -> tuple[Float[Array, "B A"], Float[Array, " B"]]:
    """The clean sample that a noise network sees in a noisy one, and its error.

    x0_hat = x_k / sqrt(abar_k) - sqrt(1 / abar_k - 1) eps(x_k, k) (Kang et al. 2023,
    the action approximation).  With a perfect network it is E[x_0 | x_k], the average
    of all the samples that noise may have turned into x_k.  Where much noise leaves
    several actions possible, their average need not be near any of them.

    Args:
      schedule: of K steps.
      predict: the noise network, conditioning closed over; called once.
      x0: clean samples.
      k: diffusion steps in 0..K-1.
      noise: standard normal.
      constraint: obeyed by the estimate.

    Returns:
      x0_hat `[B, A]`, and `[B]` the mean over dimensions of the squared error of the
      predicted noise, whose mean is `losses.denoising_loss`.
    """
    x_k = forward_noise(schedule, x0, k, noise)
    epsilon = predict(x_k, k)
    estimate = constraint(x0_from_epsilon(schedule, x_k, k, epsilon))
    return estimate, squared_error(epsilon - noise)


def variational_weights(schedule: Schedule) -> np.ndarray:
    """Weights of the evidence bound, beta / (2 alpha (1 - abar)), `[K]` of mean 1.

    With them the squared error of the noise is the bound of -log p(x_0) up to scale, if
    the chain's variance is beta (Ho et al. 2020, eq. 12).
    """
    weight = schedule.beta / (2 * (1 - schedule.beta) * schedule.noise**2)
    return weight / weight.mean()


# (schedule, x0, x0_hat, error of the noise [B], k) -> log p(x0) [B] up to a constant.
Likelihood = Callable[[Schedule, Array, Array, Array, Array], Array]


def fixed_std(schedule, x0, estimate, error, k):
    """-|x0 - x0_hat|^2 / 2: a Gaussian of variance 1 about the estimate."""
    return -0.5 * jnp.sum(jnp.square(x0 - estimate), axis=-1)


def elbo(schedule, x0, estimate, error, k):
    """The evidence bound of the chain, at the diffusion step that was drawn."""
    return -at(variational_weights(schedule), k, error) * error


LIKELIHOODS: dict[str, Likelihood] = {"fixed_std": fixed_std, "elbo": elbo}


def likelihood(name: str) -> Likelihood:
    """The likelihood of that name, a key of `LIKELIHOODS`.

    Raises:
      ValueError: there is none.
    """
    return one_of("likelihood", name, LIKELIHOODS)


def shares(steps: int, k_max: int | None) -> Callable[[Array], Any]:
    """Weight of each sample by its diffusion step: of mean 1, and 0 from `k_max` on.

    Args:
      steps: K.
      k_max: in 1..K; None gives all steps the weight 1.

    Returns:
      `(k [B]) -> [B]`, or 1.

    Raises:
      ValueError: `k_max` is out of range.
    """
    if k_max is None:
        return lambda k: 1.0
    if not 1 <= k_max <= steps:
        raise ValueError(
            f"k_max must be within 1..diffusion_steps ({steps}), got {k_max}"
        )
    return lambda k: jnp.where(k < k_max, steps / k_max, 0.0)
