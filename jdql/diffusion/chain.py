"""What a sampler tells guides of its chain, and what it asks of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from jdql.diffusion.constraints import unconstrained
from jdql.diffusion.reverse import ReverseSteps
from jdql.diffusion.schedules import Schedule
from jdql.types import Array, Constraint, Denoiser

# A network with its conditioning closed over: (x_k [*B, A], k) -> its prediction.
Network = Callable[[Array, Array], Array]


class Chain(NamedTuple):
    """What a guide may know of the chain that it guides.

    Denoisers in a chain are given the index i of a noise level; networks, gradients and
    energies are given the diffusion step of that level, `step(i)`.

    Attributes:
      levels: the m noise levels at which the network is called, 0 the least noisy.
      k: `[m]` the diffusion step of each level as the network is told it, int32 or,
        where the chain goes between the trained steps, float64; of a flow its time t.
      denoiser: reads a network as a denoiser of this chain.
      constrain: the denoiser whose estimates obey the bounds and the clamp.
      clamp: obeyed by every sample that the network sees.
      steps: the table of the chain; None where a step is not linear in one x0_hat.
    """

    levels: Schedule
    k: np.ndarray
    denoiser: Callable[[Network], Denoiser]
    constrain: Callable[[Denoiser], Denoiser] = lambda denoiser: denoiser
    clamp: Constraint = unconstrained
    steps: ReverseSteps | None = None

    def step(self, level: Array) -> Array:
        """The diffusion step of a level, as the network is told it."""
        return step_at(self.k, level)


def step_at(k: np.ndarray, level: Array) -> Array:
    """`k[level]`; the level itself where they are the same, which costs nothing."""
    same = k.dtype.kind == "i" and np.array_equal(k, np.arange(len(k)))
    return level if same else jnp.asarray(k)[level]


@runtime_checkable
class Guidance(Protocol):
    """Maps a denoiser of a chain to the guided one.

    The denoiser that it is given is as the network has it; the one that it returns
    obeys the constraint of the chain (`Chain.constrain`), as far as it shall.
    """

    def __call__(self, denoiser: Denoiser, chain: Chain, /) -> Denoiser:
        """Returns the guided denoiser."""
        ...
