"""Guidance: a denoiser made to prefer some samples, by transforming the denoiser.

For a target law p(x_0) e(x_0) the score at step k is that of p plus the gradient g of
log E[e(x_0) | x_k], and x0_hat shifts with the score by noise^2 / signal.

| what is known of e | here |
|---|---|
| g at every noise level: a classifier's gradient | `classifier` |
| g, at the mean of a step and applied to it (Dhariwal & Nichol 2021) | `mean` |
| g, at x_k and applied to it before a step (Janner et al. 2022) | `diffuser` |
| e = p(y | x_0), by a network trained with y and one without | `classifier_free` |
| the same of several y at once | `classifier_free_stacked` |
| log E[e | x_k] itself, a trained energy (Lu et al. 2023) | `energy` |

A guide is an argument of sampling, `sampler.sample(predict, draws, guide=...)`, and
`compose` makes one of several.  The sampler tells it what it must know of the chain, a
`Chain`: guides need no schedule of their own.

Guides stand on either side of the clipping of x0_hat.  `classifier`, `energy` and
`classifier_free` change what x_0 is estimated to be, so the estimate is clipped after
them.  `mean` and `diffuser` instead move samples: the mean of a step, or x_k before it.
They are denoisers all the same, because a step makes c_x0 x0_hat + c_xk x_k, and what
x0_hat is changed by comes out multiplied by c_x0: to move the result by some amount is
to add that amount, divided by c_x0, to x0_hat.  What they return is then no estimate of
x_0 any more and must not be clipped, so they stand after the clipping.

No gradient passes through g: a loss of guided samples trains the denoiser alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdql.diffusion.chain import Chain, Network
from jdql.diffusion.process import at
from jdql.diffusion.reverse import ReverseSteps, by_level
from jdql.types import Array, Denoiser, Float, Real

Weight = float | Float[Array, ""]
# (x_k [*B, A], k) -> the gradient [*B, A] with respect to x_k of a log-likelihood.
Gradient = Callable[[Array, Array], Array]
Transform = Callable[[Denoiser, Chain], Denoiser]


def unchanged(denoiser: Denoiser, chain: Chain) -> Denoiser:
    """The transform that leaves the denoiser as it is."""
    del chain
    return denoiser


class Guide(NamedTuple):
    """A `chain.Guidance` of two parts, between which x0_hat is clipped.

    Attributes:
      estimate: changes estimates of x_0, before they are clipped.
      move: moves samples, by shifts of x0_hat that no clipping may undo.
    """

    estimate: Transform = unchanged
    move: Transform = unchanged

    def __call__(self, denoiser: Denoiser, chain: Chain) -> Denoiser:
        """Returns the guided denoiser."""
        return self.move(chain.constrain(self.estimate(denoiser, chain)), chain)


def compose(*guides: Guide) -> Guide:
    """The guide that is all of these; each transforms what those before it made.

    Whatever their order, all change x0_hat before it is clipped or move samples after.
    """

    def in_turn(*transforms: Transform) -> Transform:
        def transform(denoiser: Denoiser, chain: Chain) -> Denoiser:
            for one in transforms:
                denoiser = one(denoiser, chain)
            return denoiser

        return transform

    return Guide(
        in_turn(*(guide.estimate for guide in guides)),
        in_turn(*(guide.move for guide in guides)),
    )


def classifier(gradient: Gradient, weight: Weight = 1.0) -> Guide:
    """x0_hat + weight (noise^2 / signal) g(x_k, k): guidance of the score.

    Exact, at weight 1 and as the number of steps grows, if `gradient` is that of
    log p(y | x_k) at the noise level of k (Song et al. 2021, eq. 14).

    Args:
      gradient: of the log-likelihood.
      weight: its strength; 0 is no guidance.

    Returns:
      The guide; with a chain that starts at signal 0, as flows do, it raises
      ValueError.
    """

    def estimate(denoiser: Denoiser, chain: Chain) -> Denoiser:
        signal, noise = chain.levels.signal, chain.levels.noise
        if np.any(signal == 0):
            raise ValueError(
                "guidance of the score divides by the signal, and this chain starts "
                "at signal 0: take classifier-free guidance, or sample a diffusion"
            )

        def guided(x_k: Float[Array, "*B A"], i: Real[Array, "..."]) -> Array:
            g = jax.lax.stop_gradient(gradient(x_k, chain.step(i)))
            return denoiser(x_k, i) + weight * at(noise**2 / signal, i, x_k) * g

        return guided

    return Guide(estimate=estimate)


def energy(energy_of: Callable[[Array, Array], Array], weight: Weight = 1.0) -> Guide:
    """`classifier` guidance by the gradient of an energy.

    Args:
      energy_of: `(x_k [*B, A], k) -> [*B]`, an estimate of log E[exp(beta Q) | x_k],
        such as what `contrastive_energy_loss` trains (Lu et al. 2023).
      weight: its strength.
    """

    def gradient(x_k: Array, k: Array) -> Array:
        return jax.grad(lambda x: jnp.sum(energy_of(x, k)))(x_k)

    return classifier(gradient, weight)


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


def classifier_free(unconditional: Network, weight: Weight) -> Guide:
    """Guides the conditional network away from `unconditional` (Ho & Salimans 2022).

    Weight 1 is the conditional denoiser and 0 the unconditional one; in terms of the
    paper's w, weight = 1 + w.  The weights add up to one, so that mixing estimates of
    x_0, as here, is mixing noise, v or velocities.

    Args:
      unconditional: the network without the condition; it predicts what the
        conditional one does.
      weight: its strength.
    """

    def estimate(conditional: Denoiser, chain: Chain) -> Denoiser:
        without = chain.denoiser(unconditional)

        def guided(x_k: Float[Array, "*B A"], i: Real[Array, "..."]) -> Array:
            return mixture(without(x_k, i), conditional(x_k, i), weight)

        return guided

    return Guide(estimate=estimate)


def classifier_free_stacked(*weights: Weight) -> Guide:
    """`classifier_free` with one call for all denoisers, of one condition or of more.

    It guides a denoiser of `[1 + n, *B, A]` whose row 0 is unconditional, u, and whose
    row i is given condition i, c_i; it gives one of `[*B, A]`, and in a composition
    comes first.  The estimate is

        u + sum_i weight_i (c_i - u),

    Ajay et al. 2023, section 3.3: "this and that" by positive weights, "not that" by a
    negative one.  Where the law of u is p(x) and that of c_i is p(x | y_i), conditions
    that are independent given x make it, at weights 1, the law given all of them.

    Args:
      *weights: one for each condition; with one alone, as in `classifier_free`.

    Returns:
      The guide; a denoiser of another number of rows is refused with ValueError.

    Raises:
      ValueError: no weight.
    """
    if not weights:
        raise ValueError("guidance by conditions takes a weight for each, got none")

    def estimate(stacked: Denoiser, chain: Chain) -> Denoiser:
        del chain
        rows = 1 + len(weights)

        def guided(x_k: Float[Array, "*B A"], i: Real[Array, "..."]) -> Array:
            each_i = i if jnp.ndim(i) == 0 else jnp.broadcast_to(i, (rows, *i.shape))
            each = stacked(jnp.broadcast_to(x_k, (rows, *x_k.shape)), each_i)
            if len(each) != rows:
                raise ValueError(
                    f"{len(weights)} conditions and none make {rows} rows, but the "
                    f"network gives {len(each)}"
                )
            # Of one condition this is `mixture`, to the last bit.
            given = sum(w * c for w, c in zip(weights, each[1:], strict=True))
            return (1 - sum(weights)) * each[0] + given

        return guided

    return Guide(estimate=estimate)


def mean(gradient: Gradient, weight: Weight = 1.0) -> Guide:
    """Moves the mean mu of each step by weight r^2 g(mu), r^2 being its variance.

    Dhariwal & Nichol 2021, algorithm 1, with g evaluated at mu and at the noise level
    that mu has, the one that the step goes to.

    Args:
      gradient: of the log-likelihood.
      weight: its strength.

    Returns:
      The guide; with a chain whose steps add no noise it raises ValueError.
    """

    def move(denoiser: Denoiser, chain: Chain) -> Denoiser:
        table = _noisy_steps("mean", chain)

        def guided(x_k: Float[Array, "*B A"], i: Real[Array, "..."]) -> Array:
            x0 = denoiser(x_k, i)
            mu = at(table.x0, i, x_k) * x0 + at(table.xk, i, x_k) * x_k
            after = chain.step(jnp.maximum(i - 1, 0))  # the last step has no variance
            g = jax.lax.stop_gradient(gradient(chain.clamp(mu), after))
            return x0 + weight * at(table.noise**2 / table.x0, i, x_k) * g

        return guided

    return Guide(move=move)


def diffuser(
    gradient: Gradient, weight: Weight = 1.0, *, repeats: int = 1, stop: int = 0
) -> Guide:
    """Before each step, `repeats` times: x <- clamp(x + weight r^2 g(x, k)).

    Janner et al. 2022, as their code does it; r^2 is the variance of the step.  It is
    no exact tilt of the law, and what a weight does depends on the number of steps.

    Args:
      gradient: of the return.
      weight: its strength; the authors' `scale`.
      repeats: moves before each step; the authors' `n_guide_steps`.
      stop: steps k below it are not guided; the authors' `t_stopgrad`.

    Returns:
      The guide; with a chain whose steps add no noise it raises ValueError.

    Raises:
      ValueError: fewer than one move.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}: leave the guide")

    def move(denoiser: Denoiser, chain: Chain) -> Denoiser:
        table = _noisy_steps("diffuser", chain)
        variance = np.where(chain.k < stop, 0.0, table.noise**2)

        def moved(x: Array, i: Array) -> Array:
            for _ in range(repeats):
                g = jax.lax.stop_gradient(gradient(x, chain.step(i)))
                x = chain.clamp(x + weight * at(variance, i, x) * g)
            return x

        def guided(x_k: Float[Array, "*B A"], i: Real[Array, "..."]) -> Array:
            x = moved(x_k, i)
            # The step adds c_xk times the x_k that it knows: the rest is added here.
            return denoiser(x, i) + at(table.xk / table.x0, i, x_k) * (x - x_k)

        return guided

    return Guide(move=move)


def _noisy_steps(name: str, chain: Chain) -> ReverseSteps:
    """The table of a chain whose steps add noise, by level."""
    if chain.steps is None or not np.any(chain.steps.noise):
        raise ValueError(
            f"{name} guidance scales by the variance of each step, and this chain has "
            "none: take sampler ancestral with more than one step and a variance "
            "other than deterministic, or classifier or energy guidance"
        )
    return by_level(chain.steps)
