"""Array aliases, the data that agents see, and the signatures that parts meet at.

Letters in shapes, the same everywhere: `B` batch, `K` diffusion steps, `H` horizon,
`L` steps of a window, `A` action dimension, `O` observation dimension, `N` transitions
or candidates, `S` seeds (members).  Two clocks, two letters: `k` is the diffusion step,
0 being the least noisy, and `t` is environment time.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

try:  # Shapes are checked in the tests only; the training core runs without jaxtyping.
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Real
except ModuleNotFoundError:  # annotations are strings: nothing evaluates these names
    Array = jax.Array
    Bool = Float = Int = PRNGKeyArray = Real = Any

__all__ = [
    "Array",
    "Bool",
    "Chunk",
    "Constraint",
    "DataSpec",
    "Denoiser",
    "Float",
    "Future",
    "Int",
    "PRNGKeyArray",
    "Params",
    "Real",
    "Transition",
    "Window",
]

Params = Any  # a pytree of arrays


class Transition(NamedTuple):
    """A batch of environment steps.

    `mask` is 0 where the episode truly ended and 1 everywhere else, time-outs
    included: a time-out bootstraps.  It does not contain the agent's gamma.
    """

    observation: Float[Array, "*B O"]
    action: Float[Array, "*B A"]
    reward: Float[Array, "*B"]
    mask: Float[Array, "*B"]
    next_observation: Float[Array, "*B O"]


class Chunk(NamedTuple):
    """A batch of `h` environment steps in a row; with h = 1, transitions.

    A chunk never goes on in the next episode: its steps after the episode's end, which
    `valid` marks with 0, repeat the last action and have no reward.  `mask` is 0
    where the chunk contains a true end, and `next_observation` is the one after the
    last valid step.  Neither contains the agent's gamma.
    """

    observation: Float[Array, "*B O"]
    action: Float[Array, "*B h A"]
    reward: Float[Array, "*B h"]
    valid: Float[Array, "*B h"]
    mask: Float[Array, "*B"]
    next_observation: Float[Array, "*B O"]


class Window(NamedTuple):
    """A batch of `L` consecutive environment steps, of which some may be padding.

    A window never goes on in another episode.  `valid` is 1 at steps of its episode and
    0 before its start and behind its end, where `reward` is 0 and the padding rule says
    what `observation` and `action` are.  `mask` is 0 at and behind a true end and 1
    at all other steps, those behind a time-out included; it does not contain the
    agent's gamma.  `next_observation` follows the window's last step, or the episode's
    last where that comes first.
    """

    observation: Float[Array, "*B L O"]
    action: Float[Array, "*B L A"]
    reward: Float[Array, "*B L"]
    valid: Float[Array, "*B L"]
    mask: Float[Array, "*B L"]
    next_observation: Float[Array, "*B O"]


class Future(NamedTuple):
    """A batch of environment steps, each with a later state of the same episode.

    `future` is the observation `delay` environment steps after `observation`; where a
    true end comes first, it is the final one, in which time then stands still.
    """

    transition: Transition
    future: Float[Array, "*B O"]
    delay: Int[Array, "*B"]


class DataSpec(NamedTuple):
    """What an agent must know of its data: sizes, and bounds of each action.

    `scaling` holds the maps from the environment's units to those of the data, a
    `jdql.data.scaling.Scaling`, for systems with a rule that is stated in those units
    (a controller of positions and speeds, padding with zeros).  The runtime gives it to
    `make`; where it is None, the units are the same.
    """

    observation_dim: int
    action_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    scaling: Any = None


@runtime_checkable
class Denoiser(Protocol):
    """Estimates the clean sample from a noisy one: `(x_k, k) -> x0_hat`.

    A sample is an action `[*B, A]`, or a chunk or trajectory `[*B, H, A]`.  `k` is a
    scalar or has leading axes of `x_k`: the diffusion step, or in a sampler the index
    of a noise level that the sampler visits.  Conditioning is a closure.
    """

    def __call__(
        self, x_k: Float[Array, "*B A"], k: Real[Array, "..."], /
    ) -> Float[Array, "*B A"]:
        """Returns x0_hat for the noisy sample `x_k` at step `k`."""
        ...


@runtime_checkable
class Constraint(Protocol):
    """Maps a sample to the nearest one that is allowed."""

    def __call__(self, x: Float[Array, "*B A"], /) -> Float[Array, "*B A"]:
        """Returns the nearest allowed sample."""
        ...
