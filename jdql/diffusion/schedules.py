"""Noise schedules: how much of the data and how much noise each diffusion step holds.

Tables are built in numpy float64 and cast where they are used: in float32 the cosine
schedule loses its last steps.  k = 0 is the least noisy step.
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
    """
    return np.linspace(low, high, steps)


def cosine_betas(steps: int, offset: float = 0.008) -> np.ndarray:
    """Betas of the squared-cosine abar, at most 0.999, `[K]` float64.

    As the authors of Diffusion-QL discretise it: the K + 1 grid points divide [0, 1]
    evenly and include its ends, while Nichol & Dhariwal 2021 (eq. 17) space them by
    1/K and leave the last one out.
    """
    grid = np.linspace(0, 1, steps + 1)
    abar = np.cos((grid + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.clip(1 - abar[1:] / abar[:-1], 0, 0.999)


BETAS: dict[str, Callable[[int], np.ndarray]] = {
    "vp": vp_betas,
    "linear": linear_betas,
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
    """The schedule called `name` ("vp", "linear" or "cosine") with `steps` >= 1 steps.

    Raises:
      ValueError: for an unknown name or fewer than one step.
    """
    if name not in BETAS:
        raise ValueError(f"schedule must be one of {sorted(BETAS)}, got {name!r}")
    if steps < 1:
        raise ValueError(f"diffusion_steps must be at least 1, got {steps}")
    return from_betas(BETAS[name](steps))
