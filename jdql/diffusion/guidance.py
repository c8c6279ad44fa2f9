"""Guidance: a denoiser made to prefer some samples, by transforming the denoiser.

For a target law p(x_0) e(x_0) the score at step k is that of p plus the gradient g of
log E[e(x_0) | x_k], and x0_hat shifts with the score by noise^2 / signal.

| what is known of e | here |
|---|---|
| g at every noise level: a classifier's gradient | `classifier` |
| g, at the mean of a step and applied to it (Dhariwal & Nichol 2021) | `mean` |
| g, at x_k and applied to it before a step (Janner et al. 2022) | `diffuser` |
| e = p(y | x_0), by a denoiser trained with y and one without | `classifier_free` |
| log E[e | x_k] itself, a trained energy (Lu et al. 2023) | `energy` |

`mean` and `diffuser` are rules of a step, not of a denoiser.  A step is linear in
x0_hat and x (`reverse.ReverseSteps`), so that both are a shift of x0_hat all the same,
by numbers from the table of the chain: they need that table and fit no other chain, and
a constraint on x0_hat belongs inside them, `mean(steps, g)(constrain(denoiser, clip))`.

No gradient passes through g: a loss of guided samples trains the denoiser alone.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jdql.diffusion.constraints import unconstrained
from jdql.diffusion.process import at
from jdql.diffusion.reverse import ReverseSteps
from jdql.diffusion.schedules import Schedule
from jdql.types import Array, Constraint, Denoiser, Float, Guidance, Int, Real

Weight = float | Float[Array, ""]
# (x_k [*B, A], k) -> the gradient [*B, A] with respect to x_k of a log-likelihood.
Gradient = Callable[[Array, Array], Array]


def classifier(
    schedule: Schedule, gradient: Gradient, weight: Weight = 1.0
) -> Guidance:
    """x0_hat + weight (noise^2 / signal) g(x_k, k): guidance of the score.

    Exact, at weight 1 and as the number of steps grows, if `gradient` is that of
    log p(y | x_k) at the noise level of k (Song et al. 2021, eq. 14).

    Args:
      schedule: of K steps.
      gradient: of the log-likelihood.
      weight: its strength; 0 is no guidance.
    """
    scale = schedule.noise**2 / schedule.signal

    def guide(denoiser: Denoiser) -> Denoiser:
        def guided(x_k: Float[Array, "*B A"], k: Int[Array, "..."]) -> Array:
            g = jax.lax.stop_gradient(gradient(x_k, k))
            return denoiser(x_k, k) + weight * at(scale, k, x_k) * g

        return guided

    return guide


def energy(
    schedule: Schedule,
    energy_of: Callable[[Array, Array], Array],
    weight: Weight = 1.0,
) -> Guidance:
    """`classifier` guidance by the gradient of an energy.

    Args:
      schedule: of K steps.
      energy_of: `(x_k [*B, A], k) -> [*B]`, an estimate of log E[exp(beta Q) | x_k],
        such as what `contrastive_energy_loss` trains (Lu et al. 2023).
      weight: its strength.
    """

    def gradient(x_k: Array, k: Array) -> Array:
        return jax.grad(lambda x: jnp.sum(energy_of(x, k)))(x_k)

    return classifier(schedule, gradient, weight)


def contrastive_energy_loss(
    energies: Float[Array, "B N"], weights: Float[Array, "B N"]
) -> Float[Array, ""]:
    """-mean over B of sum_i weight_i log softmax(energies)_i (Lu et al. 2023).

    A group is N actions of one observation, drawn from the behaviour policy and noised
    to one step k; its energies are f(x_k, k, s) at the noisy actions, its weights
    belong to the clean ones.  With weights exp(beta Q) the minimiser is
    f = log E[exp(beta Q) | x_k] plus a constant, for every N > 1.  The authors train
    with softmax(beta Q) over the group instead, which cannot overflow and whose
    minimiser tends to the same as N grows (16 there).

    Args:
      energies: of each group.
      weights: non-negative, without a gradient.

    Returns:
      The scalar loss.
    """
    return -jnp.mean(jnp.sum(weights * jax.nn.log_softmax(energies, axis=-1), axis=-1))


def mixture(
    unconditional: Float[Array, "*B A"],
    conditional: Float[Array, "*B A"],
    weight: Weight,
) -> Float[Array, "*B A"]:
    """u + weight (c - u), written so that 0 gives u and 1 gives c to the last bit."""
    return (1 - weight) * unconditional + weight * conditional


def classifier_free(unconditional: Denoiser, weight: Weight) -> Guidance:
    """Guides the conditional denoiser away from `unconditional` (Ho & Salimans 2022).

    Weight 1 is the conditional denoiser and 0 the unconditional one; in terms of the
    paper's w, weight = 1 + w.  The weights add up to one, so that it is the same
    whether denoisers or the networks under them are mixed, be it noise, v or a
    velocity that they predict.

    Args:
      unconditional: the denoiser without the condition.
      weight: its strength.
    """

    def guide(conditional: Denoiser) -> Denoiser:
        def guided(x_k: Float[Array, "*B A"], k: Real[Array, "..."]) -> Array:
            return mixture(unconditional(x_k, k), conditional(x_k, k), weight)

        return guided

    return guide


def classifier_free_stacked(weight: Weight) -> Guidance:
    """`classifier_free` with one call for both denoisers.

    It guides a denoiser of `[2, *B, A]` whose row 0 is unconditional and whose row 1 is
    conditional, and gives one of `[*B, A]`.  Where networks are small this halves the
    time.

    Args:
      weight: as in `classifier_free`.
    """

    def guide(stacked: Denoiser) -> Denoiser:
        def guided(x_k: Float[Array, "*B A"], k: Real[Array, "..."]) -> Array:
            ks = k if jnp.ndim(k) == 0 else jnp.broadcast_to(k, (2, *jnp.shape(k)))
            both = stacked(jnp.broadcast_to(x_k, (2, *x_k.shape)), ks)
            return mixture(both[0], both[1], weight)

        return guided

    return guide


def mean(steps: ReverseSteps, gradient: Gradient, weight: Weight = 1.0) -> Guidance:
    """Moves the mean mu of each step by weight r^2 g(mu), r^2 being its variance.

    Dhariwal & Nichol 2021, algorithm 1, with g evaluated at mu and at the noise level
    that mu has, the one that the step goes to.  A chain without noise is not guided.

    Args:
      steps: the table of the chain that is to be run.
      gradient: of the log-likelihood.
      weight: its strength.
    """
    table = _ascending(steps)

    def guide(denoiser: Denoiser) -> Denoiser:
        def guided(x_k: Float[Array, "*B A"], k: Int[Array, "..."]) -> Array:
            x0 = denoiser(x_k, k)
            mu = at(table.x0, k, x_k) * x0 + at(table.xk, k, x_k) * x_k
            level = jnp.maximum(k - 1, 0)  # the step from k = 0 has no variance
            g = jax.lax.stop_gradient(gradient(mu, level))
            return x0 + weight * at(table.noise**2 / table.x0, k, x_k) * g

        return guided

    return guide


def diffuser(
    steps: ReverseSteps,
    gradient: Gradient,
    weight: Weight = 1.0,
    *,
    repeats: int = 1,
    stop: int = 0,
    constraint: Constraint = unconstrained,
) -> Guidance:
    """Before each step, `repeats` times: x <- constraint(x + weight r^2 g(x, k)).

    Janner et al. 2022, as their code does it; r^2 is the variance of the step.  It is
    no exact tilt of the law, and what a weight does depends on the number of steps.

    Args:
      steps: the table of the chain that is to be run.
      gradient: of the return.
      weight: its strength; the authors' `scale`.
      repeats: moves before each step; the authors' `n_guide_steps`.
      stop: steps k below it are not guided; the authors' `t_stopgrad`.
      constraint: what every moved sample has to obey.
    """
    table = _ascending(steps)
    variance = np.where(np.arange(len(table.k)) < stop, 0.0, table.noise**2)

    def move(x: Array, k: Array) -> Array:
        for _ in range(repeats):
            g = jax.lax.stop_gradient(gradient(x, k))
            x = constraint(x + weight * at(variance, k, x) * g)
        return x

    def guide(denoiser: Denoiser) -> Denoiser:
        def guided(x_k: Float[Array, "*B A"], k: Int[Array, "..."]) -> Array:
            moved = move(x_k, k)
            # The step adds xk times the sample that it knows: the rest is added here.
            rest = at(table.xk / table.x0, k, x_k) * (moved - x_k)
            return denoiser(moved, k) + rest

        return guided

    return guide


def _ascending(steps: ReverseSteps) -> ReverseSteps:
    """The rows of the table in the order of k = 0..K-1."""
    return ReverseSteps(*(np.asarray(column)[::-1] for column in steps))
