"""The reverse chain: one step rule, and `lax.scan` over it.

Going from noise level (a, s) to (a', s'), with x = a x_0 + s eps, every family makes

    x' = a' x0_hat + e eps_hat + r z,     eps_hat = (x - a x0_hat) / s,

and the families differ in e and r only (rules below).  Written out it is linear,
x' = c_x0 x0_hat + c_xk x + r z, so a chain is a table of three numbers a step, computed
once in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdql.diffusion.schedules import Schedule
from jdql.types import Array, Denoiser, Float, PRNGKeyArray


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
    """The noise of one chain: its start `[*B, A]` and one draw a step `[n, *B, A]`."""

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


def reverse_steps(
    schedule: Schedule,
    variance: str = "posterior",
    ks: Sequence[int] | None = None,
) -> ReverseSteps:
    """The chain that visits the diffusion steps `ks` and ends in a clean sample.

    Args:
      schedule: of K steps.
      variance: "posterior" (the authors' code of Diffusion-QL), "beta" (the paper's
        text), "deterministic" (DDIM) or "renoise".
      ks: descending steps in 0..K-1; None visits all K.

    Returns:
      The table of the chain, float64.

    Raises:
      ValueError: for an unknown variance rule, or steps that do not descend.
    """
    if variance not in VARIANCES:
        raise ValueError(
            f"variance must be one of {sorted(VARIANCES)}, got {variance!r}"
        )
    k = np.arange(schedule.steps)[::-1] if ks is None else np.asarray(ks)
    if k.size == 0 or k[0] >= schedule.steps or k[-1] < 0 or np.any(np.diff(k) >= 0):
        raise ValueError(f"{ks=} must descend within 0..{schedule.steps - 1}")
    a, s = schedule.signal[k], schedule.noise[k]
    a_next, s_next = np.append(a[1:], 1.0), np.append(s[1:], 0.0)
    e, r = VARIANCES[variance](a, s, a_next, s_next)
    return ReverseSteps(k.astype(np.int32), a_next - e * a / s, e / s, r)


def draw_chain(
    key: PRNGKeyArray, steps: int, shape: tuple[int, ...], dtype=jnp.float32
) -> ChainDraws:
    """Standard normal noise for a chain of `steps` steps over samples of `shape`.

    One draw of everything: faster than a draw a step.  The key is consumed.
    """
    normal = jax.random.normal(key, (steps + 1, *shape), dtype)
    return ChainDraws(normal[0], normal[1:])


def reverse_chain(
    denoiser: Denoiser,
    steps: ReverseSteps,
    draws: ChainDraws,
    *,
    unroll: int = 1,
    remat: bool = False,
) -> Float[Array, "*B A"]:
    """Runs the reverse chain from `draws.start`; differentiable from end to end.

    Args:
      denoiser: estimates x_0 from (x_k, k); clip inside it.
      steps: the table of the chain.
      draws: its noise.
      unroll: iterations of the scan laid out in a row: faster, slower to compile.
      remat: recompute the network in the backward pass instead of storing it: memory
        for one step instead of n, at the price of a second forward pass.

    Returns:
      The sample.
    """

    def step(x: Array, inputs: tuple[ReverseSteps, Array]) -> tuple[Array, None]:
        row, noise = inputs
        x0 = denoiser(x, row.k)
        return row.x0 * x0 + row.xk * x + row.noise * noise, None

    dtype = draws.start.dtype
    table = ReverseSteps(
        jnp.asarray(steps.k), *(jnp.asarray(c, dtype) for c in steps[1:])
    )
    body = jax.checkpoint(step) if remat else step
    x, _ = jax.lax.scan(body, draws.start, (table, draws.noises), unroll=unroll)
    return x
