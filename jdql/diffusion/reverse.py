"""The reverse chain: one step rule, and `lax.scan` over it.

Going from noise level (a, s) to (a', s'), with x = a x_0 + s eps, every family makes

    x' = a' x0_hat + e eps_hat + r z,     eps_hat = (x - a x0_hat) / s,

and the families differ in e and r only (rules below).  Written out it is linear,
x' = c_x0 x0_hat + c_xk x + r z, so a chain is a table of three numbers a step, computed
once in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdql.diffusion.constraints import unconstrained
from jdql.diffusion.process import at
from jdql.diffusion.schedules import Schedule
from jdql.types import Array, Constraint, Denoiser, Float, Int, PRNGKeyArray


class ReverseSteps(NamedTuple):
    """A reverse chain as data; row 0 is applied first and is the noisiest.

    Attributes:
      k: `[n]` int32, the diffusion step given to the denoiser.
      x0: `[n]`, weight of x0_hat.
      xk: `[n]`, weight of the current sample.
      noise: `[n]`, standard deviation of the noise added, 0 in the last row.
    """

    k: Any
    x0: Any
    xk: Any
    noise: Any

    @property
    def steps(self) -> int:
        """Number of network calls, n."""
        return len(self.k)


class ChainDraws(NamedTuple):
    """The noise of one chain: its start `[*B, A]` and one draw a step `[n, *B, A]`.

    Chunks and trajectories are samples of shape `[*B, H, A]`.  A chain that adds no
    noise may leave the draws out: n = 0.
    """

    start: Float[Array, "*B A"]
    noises: Float[Array, "n *B A"]


# A variance rule maps the noise levels of a step, (a, s) -> (a', s'), to (e, r).
VarianceRule = Callable[..., tuple[np.ndarray, np.ndarray]]


def posterior(a, s, a_next, s_next):
    """Ancestral sampling, variance of q(x_{k-1} | x_k, x_0) (Ho et al. 2020, eq. 7)."""
    r = s_next / s * np.sqrt(1 - (a / a_next) ** 2)
    return np.sqrt(s_next**2 - r**2), r


def beta(a, s, a_next, s_next):
    """The posterior's mean with variance beta_k (the text of Wang et al. 2023)."""
    e, _ = posterior(a, s, a_next, s_next)
    return e, np.where(s_next > 0, np.sqrt(1 - (a / a_next) ** 2), 0.0)


def deterministic(a, s, a_next, s_next):
    """No noise: DDIM with eta = 0 (Song et al. 2021, eq. 12)."""
    return s_next, np.zeros_like(s_next)


def renoise(a, s, a_next, s_next):
    """Fresh noise at every step: multistep consistency sampling."""
    return np.zeros_like(s_next), s_next


VARIANCES: dict[str, VarianceRule] = {
    "posterior": posterior,
    "beta": beta,
    "deterministic": deterministic,
    "renoise": renoise,
}


def reverse_steps(schedule: Schedule, variance: str = "posterior") -> ReverseSteps:
    """The chain that visits every level of the schedule and ends in a clean sample.

    Args:
      schedule: of K steps; `schedules.refine` makes one of fewer or of more.
      variance: "posterior" (the authors' code of Diffusion-QL), "beta" (the paper's
        text), "deterministic" (DDIM) or "renoise".

    Returns:
      The table of the chain, float64.

    Raises:
      ValueError: for an unknown variance rule.
    """
    if variance not in VARIANCES:
        raise ValueError(
            f"variance must be one of {sorted(VARIANCES)}, got {variance!r}"
        )
    a, s = schedule.signal[::-1], schedule.noise[::-1]
    a_next, s_next = np.append(a[1:], 1.0), np.append(s[1:], 0.0)
    e, r = VARIANCES[variance](a, s, a_next, s_next)
    k = np.arange(schedule.steps, dtype=np.int32)[::-1]
    return ReverseSteps(k, a_next - e * a / s, e / s, r)


def by_level(steps: ReverseSteps) -> ReverseSteps:
    """The rows of the table in the order of the levels, the least noisy first."""
    return ReverseSteps(*(np.asarray(column)[::-1] for column in steps))


def keep_direction(
    denoiser: Denoiser, constraint: Constraint, levels: Schedule, steps: ReverseSteps
) -> Denoiser:
    """The denoiser whose step goes to the constrained x0_hat along the free eps_hat.

    A step takes eps_hat from the x0_hat that it is given, so that clipping x0_hat turns
    it.  To keep that of the estimate x_free before the constraint is to give the step

        x0_hat + (c_xk signal / c_x0) (x0_hat - x_free),   x0_hat = constraint(x_free),

    which it multiplies by c_x0, c_xk x being added as ever.

    Args:
      denoiser: unconstrained, of the levels of the chain.
      constraint: obeyed by x0_hat.
      levels: of the chain.
      steps: its table.
    """
    table = by_level(steps)
    turn = table.xk * levels.signal / table.x0

    def denoise(x_k: Float[Array, "*B A"], k: Int[Array, "..."]) -> Array:
        free = denoiser(x_k, k)
        x0 = constraint(free)
        return x0 + at(turn, k, x_k) * (x0 - free)

    return denoise


def draw_chain(
    key: PRNGKeyArray, steps: int, shape: tuple[int, ...], dtype=jnp.float32
) -> ChainDraws:
    """Standard normal noise for a chain of `steps` steps over samples of `shape`.

    One draw of everything: faster than a draw a step.  The key is consumed.
    """
    normal = jax.random.normal(key, (steps + 1, *shape), dtype)
    return ChainDraws(normal[0], normal[1:])


def noises_of(draws: ChainDraws, scale: np.ndarray) -> Array | None:
    """The draws of the steps; None for a chain that adds no noise and was given none.

    Raises:
      ValueError: the number of draws does not fit `scale`, the noise of each step.
    """
    count = len(draws.noises)
    if count not in ((len(scale),) if np.any(scale) else (0, len(scale))):
        raise ValueError(f"a chain of {len(scale)} steps was given {count} draws")
    return draws.noises if count else None


def reverse_chain(
    denoiser: Denoiser,
    steps: ReverseSteps,
    draws: ChainDraws,
    *,
    constraint: Constraint = unconstrained,
    unroll: int = 1,
    remat: bool = False,
    whole: bool = False,
) -> Float[Array, "..."]:
    """Runs the reverse chain from `draws.start`; differentiable from end to end.

    Args:
      denoiser: estimates x_0 from (x_k, k); clip inside it.
      steps: the table of the chain.
      draws: its noise, with no draws but the start if the table adds none.
      constraint: obeyed by what every step makes, and so not by the start.
      unroll: iterations of the scan laid out in a row: faster, slower to compile.
      remat: recompute the network in the backward pass instead of storing it: memory
        for one step instead of n, at the price of a second forward pass.
      whole: gives all that the chain goes through in the place of its end alone.

    Returns:
      The sample `[*B, A]`; if `whole`, `[n + 1, *B, A]`, the start first.

    Raises:
      ValueError: the number of draws is neither that of the steps nor, for a chain
        that adds no noise, zero.
    """

    def step(x: Array, inputs: tuple[ReverseSteps, Array | None]):
        row, noise = inputs
        x = row.x0 * denoiser(x, row.k) + row.xk * x
        x = constraint(x if noise is None else x + row.noise * noise)
        return x, x if whole else None

    dtype = draws.start.dtype
    table = ReverseSteps(
        jnp.asarray(steps.k), *(jnp.asarray(c, dtype) for c in steps[1:])
    )
    body = jax.checkpoint(step) if remat else step
    noises = noises_of(draws, steps.noise)
    x, made = jax.lax.scan(body, draws.start, (table, noises), unroll=unroll)
    return behind(draws.start, made) if whole else x


def behind(
    start: Float[Array, "*B A"], made: Float[Array, "n *B A"]
) -> Float[Array, "m *B A"]:
    """All samples of a chain: its start, and what its n steps made of it."""
    return jnp.concatenate([start[None], made])
