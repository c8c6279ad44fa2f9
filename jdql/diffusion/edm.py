"""Heun's method with churn on the process x_0 + sigma eps, and its levels.

Karras, Aittala, Aila & Laine 2022, arXiv:2206.00364, algorithm 2.  Their process adds
noise to x_0 and leaves its scale alone.  The one that networks are trained on here,
signal x_0 + noise eps, is theirs at sigma = noise / signal, multiplied by signal.  So
the sampler walks on their x, and to ask the network at some sigma it takes the
diffusion step k with noise / signal = sigma and shows it signal * x at that k.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdql.diffusion.reverse import ChainDraws, noises_of
from jdql.diffusion.schedules import Schedule, log_snr, refine, step_of
from jdql.types import Array, Constraint, Denoiser, Float


class Churn(NamedTuple):
    """Noise put back before a step (Karras et al. 2022, table 5); the default is none.

    Attributes:
      amount: S_churn, divided by the number of steps; 0 makes the sampler an ODE's.
      low: S_tmin, of sigma.
      high: S_tmax, of sigma.
      noise: S_noise, the standard deviation of that noise.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = float("inf")
    noise: float = 1.0


NO_CHURN = Churn()


class HeunSteps(NamedTuple):
    """A chain as data; row 0 is applied first, the last row goes to sigma = 0.

    Attributes:
      i_hat: `[n]` int32, the level after churn.
      i_next: `[n]` int32, the level that the step goes to; unused in the last row.
      sigma_hat: `[n]`.
      sigma_next: `[n]`, 0 in the last row.
      signal_hat: `[n]`, scales x for the network.
      signal_next: `[n]`.
      noise: `[n]`, standard deviation of the churned noise.
    """

    i_hat: Any
    i_next: Any
    sigma_hat: Any
    sigma_next: Any
    signal_hat: Any
    signal_next: Any
    noise: Any


def heun_steps(
    schedule: Schedule, k: np.ndarray, churn: Churn = NO_CHURN
) -> tuple[HeunSteps, np.ndarray]:
    """The chain that visits the steps `k`, and all steps at which it calls the network.

    Args:
      schedule: of K steps.
      k: `[n]` ascending within [0, K-1], integral or not, the last of them K-1.
      churn: noise put back before each step.  Deviation: sigma never rises above the
        schedule's largest, beyond which the network was not trained.

    Returns:
      The table, whose levels count in the second: the `[m]` ascending steps.

    Raises:
      ValueError: for a negative amount or noise of churn.
    """
    if churn.amount < 0 or churn.noise < 0:
        raise ValueError(f"churn must not be negative, got {churn}")
    sigma = np.exp(-log_snr(refine(schedule, k)))[::-1]
    churned = (sigma >= churn.low) & (sigma <= churn.high)
    gamma = np.where(churned, min(churn.amount / len(k), np.sqrt(2) - 1), 0.0)
    sigma_hat = np.minimum(sigma * (1 + gamma), sigma[0])
    k_hat = np.where(sigma_hat > sigma, step_of(schedule, -np.log(sigma_hat)), k[::-1])
    visited, index = np.unique(np.append(k_hat, k[::-1]), return_inverse=True)
    levels, index = refine(schedule, visited), index.astype(np.int32)
    i_hat, i_next = index[: len(k)], np.append(index[len(k) + 1 :], np.int32(0))
    return HeunSteps(
        i_hat=i_hat,
        i_next=i_next,
        sigma_hat=sigma_hat,
        sigma_next=np.append(sigma[1:], 0.0),
        signal_hat=levels.signal[i_hat],
        signal_next=levels.signal[i_next],
        noise=churn.noise * np.sqrt(sigma_hat**2 - sigma**2),
    ), visited


def heun_chain(
    denoiser: Denoiser,
    steps: HeunSteps,
    draws: ChainDraws,
    *,
    constraint: Constraint | None = None,
    unroll: int = 1,
    remat: bool = False,
    whole: bool = False,
) -> Float[Array, "..."]:
    """Runs the chain; 2n - 1 network calls.

    Args:
      denoiser: estimates x_0 from (signal x, level); clip inside it.
      steps: the table of n steps.
      draws: start, a standard normal sample of the variance-preserving process, and
        n draws, or none without churn.
      constraint: obeyed by every sample that the network is shown, in the scale that
        it is shown in, and by the result.
      unroll: iterations of the scan laid out in a row.
      remat: recompute the network in the backward pass instead of storing it.
      whole: gives all that the chain goes through in the place of its end alone.

    Returns:
      The sample `[*B, A]`; if `whole`, `[n + 1, *B, A]`, the start first, each on the
      scale of the variance-preserving process.

    Raises:
      ValueError: the number of draws is neither n nor, without churn, zero.
    """
    dtype, noises = draws.start.dtype, noises_of(draws, steps.noise)
    table = HeunSteps(
        *(jnp.asarray(i) for i in steps[:2]),
        *(jnp.asarray(c, dtype) for c in steps[2:]),
    )

    def hold(x: Array, signal: Array) -> tuple[Array, Array]:
        """A sample that obeys the constraint, and what the network is shown of it."""
        if constraint is None:
            return x, signal * x
        shown = constraint(signal * x)
        return shown / signal, shown

    def churned(x: Array, row: HeunSteps, noise: Array | None) -> tuple[Array, Array]:
        x = x if noise is None else x + row.noise * noise
        return hold(x, row.signal_hat)

    def step(x: Array, inputs: tuple[HeunSteps, Array | None]):
        row, noise = inputs
        x, shown = churned(x, row, noise)
        change = row.sigma_next - row.sigma_hat
        slope = (x - denoiser(shown, row.i_hat)) / row.sigma_hat
        ahead, shown = hold(x + change * slope, row.signal_next)
        slope_ahead = (ahead - denoiser(shown, row.i_next)) / row.sigma_next
        x = x + change * (slope + slope_ahead) / 2
        return x, row.signal_next * x if whole else None

    rest = jax.tree.map(lambda c: c[:-1], (table, noises))
    row, noise = jax.tree.map(lambda c: c[-1], (table, noises))
    body = jax.checkpoint(step) if remat else step
    start = draws.start / table.signal_hat[0]
    x, made = jax.lax.scan(body, start, rest, unroll=unroll)
    _, shown = churned(x, row, noise)
    x0 = denoiser(shown, row.i_hat)
    x0 = x0 if constraint is None else constraint(x0)
    return jnp.concatenate([draws.start[None], made, x0[None]]) if whole else x0
