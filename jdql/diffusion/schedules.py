"""Noise schedules: how much of the data and how much noise each diffusion step holds.

Tables are built in numpy float64 and cast where they are used: in float32 the cosine
schedule loses its last steps.  k = 0 is the least noisy step.

A sampler may also visit levels between the trained steps.  A grid is a rule that
chooses which, as fractional k, and `refine` gives their schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Schedule(NamedTuple):
    """A variance-preserving process, x_k = signal[k] x_0 + noise[k] eps.

    Attributes:
      beta: `[K]`, variance added by step k, in (0, 1).
      signal: `[K]`, sqrt(abar_k), abar_k being the product of (1 - beta_i) for i <= k.
      noise: `[K]`, sqrt(1 - abar_k).
    """

    beta: np.ndarray
    signal: np.ndarray
    noise: np.ndarray

    @property
    def steps(self) -> int:
        """Number of diffusion steps, K."""
        return len(self.beta)


def vp_betas(steps: int, low: float = 0.1, high: float = 10.0) -> np.ndarray:
    """The discretised variance-preserving SDE, `[K]` float64.

    beta_k = 1 - exp(-low/K - (high - low)(2k + 1)/(2K^2)), so that abar_K does not
    depend on K (Xiao, Kreis & Vahdat 2022, eq. 21; the default of Diffusion-QL).
    """
    k = np.arange(1, steps + 1)
    return 1 - np.exp(-low / steps - 0.5 * (high - low) * (2 * k - 1) / steps**2)


def linear_betas(steps: int, low: float = 1e-4, high: float = 2e-2) -> np.ndarray:
    """Evenly spaced betas, `[K]` float64 (Ho et al. 2020), not rescaled with K.

    With few steps the chain never reaches noise: abar_K is 0.95 at K = 5.

    Deviation: the authors of Diffusion-QL compute their tables in float32, where
    1 - abar_0 = 1e-4 keeps four digits.  Their last step, beta_0 / (1 - abar_0) times
    x0_hat, then multiplies it by 0.99983 in place of 1, and actions differ from these
    by up to 1.7e-4.  With tables rounded as theirs the chain agrees to about 1e-6
    (`tests/diffusion/test_reverse.py`).  The other schedules begin with more noise and
    lose less: up to 3e-5.
    """
    return np.linspace(low, high, steps)


def scaled_linear_betas(steps: int) -> np.ndarray:
    """Evenly spaced betas from 0.1 / K to 20 / K, `[K]` float64.

    The betas of Ho et al. 2020 times 1000 / K, so that abar_K hardly depends on K
    (Dhariwal & Nichol 2021; the default of EDP).  With K = 1000 it is "linear".

    Raises:
      ValueError: for fewer than 21 steps, whose last beta would be 1 or more.
    """
    if steps <= 20:
        raise ValueError(
            f"schedule scaled_linear needs diffusion_steps of at least 21, got {steps} "
            f"(its last beta, 20 / {steps}, must be below 1); take more, or schedule vp"
        )
    return linear_betas(steps, 0.1 / steps, 20 / steps)


def cosine_betas(steps: int, offset: float = 0.008) -> np.ndarray:
    """Betas of the squared-cosine abar, at most 0.999, `[K]` float64.

    Nichol & Dhariwal 2021, eq. 17, with abar at 0, 1/K, ..., 1.  The authors of
    Diffusion-QL and of Diffuser have the same table, and those of Diffusion Policy,
    where it is called `squaredcos_cap_v2`.
    """
    grid = np.linspace(0, 1, steps + 1)
    abar = np.cos((grid + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.clip(1 - abar[1:] / abar[:-1], 0, 0.999)


BETAS: dict[str, Callable[[int], np.ndarray]] = {
    "vp": vp_betas,
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "cosine": cosine_betas,
}


def from_betas(betas: np.ndarray) -> Schedule:
    """Builds the schedule of `[K]` betas.

    Raises:
      ValueError: when a beta is outside (0, 1).
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or not np.all((betas > 0) & (betas < 1)):
        raise ValueError(f"betas must be a vector within (0, 1), got {betas}")
    abar = np.cumprod(1 - betas)
    return Schedule(betas, np.sqrt(abar), np.sqrt(1 - abar))


def make_schedule(name: str, steps: int) -> Schedule:
    """The schedule called `name` (a key of `BETAS`) with `steps` >= 1 steps.

    Raises:
      ValueError: for an unknown name or too few steps.
    """
    if name not in BETAS:
        raise ValueError(f"schedule must be one of {sorted(BETAS)}, got {name!r}")
    if steps < 1:
        raise ValueError(f"diffusion_steps must be at least 1, got {steps}")
    return from_betas(BETAS[name](steps))


def log_snr(schedule: Schedule) -> np.ndarray:
    """lambda_k = log(signal / noise), `[K]`, falling in k (Lu et al. 2022)."""
    return np.log(schedule.signal) - np.log(schedule.noise)


def step_of(schedule: Schedule, log_snr: np.ndarray) -> np.ndarray:
    """The fractional steps k in [0, K-1] that have these log signal-to-noise ratios."""
    log_abar = -np.logaddexp(0, -2 * log_snr)
    return np.interp(-log_abar, -2 * np.log(schedule.signal), np.arange(schedule.steps))


def refine(schedule: Schedule, k: np.ndarray) -> Schedule:
    """The process that has one step for each entry of `k`, integral or not.

    log abar is linear between neighbouring steps, as in the wrapper of discrete-time
    models of DPM-Solver (Lu et al. 2022, appendix D.1 there).

    Args:
      schedule: of K steps.
      k: `[n]` steps within [0, K-1], ascending; n may exceed K.

    Returns:
      A schedule of n steps; `schedule` itself where `k` is 0..K-1.

    Raises:
      ValueError: when `k` does not ascend within [0, K-1].
    """
    k = np.asarray(k, np.float64)
    last = schedule.steps - 1
    if k.size == 0 or k[0] < 0 or k[-1] > last or np.any(np.diff(k) <= 0):
        raise ValueError(f"steps must ascend within 0..{last}, got {k}")
    if np.array_equal(k, np.arange(schedule.steps)):
        return schedule
    log_abar = np.interp(k, np.arange(schedule.steps), 2 * np.log(schedule.signal))
    betas = -np.expm1(np.diff(log_abar, prepend=0.0))
    return Schedule(betas, np.exp(log_abar / 2), np.sqrt(-np.expm1(log_abar)))


# A grid maps (schedule, number of steps n) to the steps [n] to visit, ascending from 0
# if n > 1; the last, where the noise begins, is K-1 in all but `leading_grid`.
Grid = Callable[[Schedule, int], np.ndarray]


def even_grid(schedule: Schedule, steps: int) -> np.ndarray:
    """Evenly spaced in k; rounded to trained steps where there are enough of them."""
    k = np.linspace(schedule.steps - 1, 0, steps)[::-1]
    return np.floor(k + 0.5) if steps <= schedule.steps else k


def leading_grid(schedule: Schedule, steps: int) -> np.ndarray:
    """The multiples of K // n below n (K // n), the grid of DDIM in diffusers.

    It is that of Diffusion Policy.  The chain starts with standard normal noise all the
    same, though up to K // n + K % n - 1 of the noisiest steps are left out.

    Raises:
      ValueError: more steps than the schedule has.
    """
    if steps > schedule.steps:
        raise ValueError(
            f"sample_steps must be at most diffusion_steps, {schedule.steps}, on the "
            f"leading grid, got {steps}: take fewer or another grid"
        )
    return np.arange(steps) * float(schedule.steps // steps)


def _evenly_in(
    clock: Callable[[np.ndarray], np.ndarray],
    inverse: Callable[[np.ndarray], np.ndarray],
) -> Grid:
    """The grid that is uniform in a rising function of log(signal / noise)."""

    def grid(schedule: Schedule, steps: int) -> np.ndarray:
        clean, noisy = clock(log_snr(schedule)[[0, -1]])
        k = step_of(schedule, inverse(np.linspace(noisy, clean, steps)[::-1]))
        k[0], k[-1] = 0, schedule.steps - 1  # without rounding errors
        return k

    return grid


log_snr_grid = _evenly_in(lambda x: x, lambda x: x)
# signal / (signal + noise) is the time of a flow from noise at 0 to data at 1.
flow_grid = _evenly_in(
    lambda x: 1 / (1 + np.exp(-x)), lambda t: np.log(t) - np.log1p(-t)
)


def sigma_grid(rho: float) -> Grid:
    """Uniform in sigma^(1/rho), sigma = noise / signal (Karras et al. 2022, eq. 5)."""
    return _evenly_in(lambda x: -np.exp(-x / rho), lambda y: -rho * np.log(-y))


karras_grid = sigma_grid(7.0)
