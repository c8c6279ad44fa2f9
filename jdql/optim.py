"""Optimisers, and what every network of a TrainState carries: `Model`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdql.checks import at_least
from jdql.types import Array, Float, Int, Params

Metrics = dict[str, Array]
Scalar = float | Float[Array, ""]
# (params, ...) -> (what is to fall, scalars worth a look)
Loss = Callable[..., tuple[Float[Array, ""], Metrics]]


class Model(NamedTuple):
    """The parameters of a network, with what optimises and what averages them.

    Attributes:
      params: what is learned.
      opt: the state of its optimiser.
      average: a slow copy of `params`, a target network or an averaged actor; `()`
        for a network that has none.
    """

    params: Params
    opt: optax.OptState
    average: Params = ()


# (the count of the updates) -> the rate of an average
Rate = Callable[[int | Int[Array, ""]], Scalar]


class Averaging(NamedTuple):
    """The rule of an average: average <- (1 - rate) average + rate params.

    Attributes:
      rate: share of the new parameters, in [0, 1]: tau, or one minus a decay; or a
        function of the count that gives it, such as `power_rule`.
      start: the count from which on it holds; before, the average stays.
      period: it holds at multiples of this count.
    """

    rate: Scalar | Rate
    start: int = 0
    period: int = 1


def start(
    params: Params, optimizer: optax.GradientTransformation, *, averaged: bool = False
) -> Model:
    """A model before its first update; its average, if any, is its parameters."""
    return Model(params, optimizer.init(params), params if averaged else ())


def descend(
    name: str,
    optimizer: optax.GradientTransformation,
    model: Model,
    loss: Loss,
    *others: Any,
) -> tuple[Model, Metrics]:
    """One step of `optimizer` down the gradient of `loss`; the average stays.

    Args:
      name: of the model, in the names of the metrics.
      optimizer: whose state the model holds.
      model: before the step.
      loss: `(params, *others) -> (loss, metrics)`, differentiated in the parameters.
      *others: what else the loss depends on.

    Returns:
      The model after the step; and the metrics of `loss`, with the loss before the step
      as `NAME_loss` and the norm of its gradient, before any clipping, as
      `NAME_grad_norm`.
    """
    (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(
        model.params, *others
    )
    updates, opt = optimizer.update(gradients, model.opt, model.params)
    params = optax.apply_updates(model.params, updates)
    own = {f"{name}_loss": value, f"{name}_grad_norm": optax.tree.norm(gradients)}
    return model._replace(params=params, opt=opt), {**metrics, **own}


def follow(
    model: Model,
    rule: Averaging,
    *,
    count: int | Int[Array, ""] = 0,
    towards: Params | None = None,
) -> Model:
    """The model with its average moved by `rule`.

    Args:
      model: one that has an average.
      rule: how fast, from when on and how often.
      count: of the updates, from 0; what `start`, `period` and a rate that depends on
        it refer to.
      towards: the parameters that the average moves to; the model's own by default.
    """
    rate = rule.rate(count) if callable(rule.rate) else rule.rate
    moved = polyak(model.average, model.params if towards is None else towards, rate)
    if rule.start == 0 and rule.period == 1:
        return model._replace(average=moved)
    due = (jnp.asarray(count) % rule.period == 0) & (count >= rule.start)
    return model._replace(
        average=jax.tree.map(
            lambda new, old: jnp.where(due, new, old), moved, model.average
        )
    )


def polyak(target: Params, online: Params, rate: Scalar) -> Params:
    """(1 - rate) target + rate online, leaf by leaf."""
    return jax.tree.map(lambda t, o: (1 - rate) * t + rate * o, target, online)


def power_rule(power: Scalar, largest: Scalar = 0.9999) -> Rate:
    """The rate of an average that forgets its beginning: Diffusion Policy's.

    The decay at count n is 0 for n < 2, where the average is a copy, and then

        min(1 - n^-power, largest).

    About the last n^power updates make up the average: its span grows with training.

    Args:
      power: in (0, 1]; 3/4 where it is Diffusion Policy's.
      largest: decay, less than 1.

    Returns:
      One minus the decay, for `Averaging.rate`.
    """

    # The authors' decay is 1 - (1 + s)^-power of s = n - 1 and 0 for s <= 0, where n
    # counts calls from 0: the second call finds s = 0 too.
    def rate(count: int | Int[Array, ""]) -> Scalar:
        n = jnp.maximum(jnp.asarray(count, jnp.float32), 1.0)
        return jnp.maximum(n**-power, 1.0 - largest)

    return rate


def adam(
    learning_rate: Scalar,
    grad_norm: Scalar | None = None,
    decay_steps: int | None = None,
) -> optax.GradientTransformation:
    """Adam as PyTorch has it, after clipping to one joint gradient norm.

    Args:
      learning_rate: step size.
      grad_norm: the largest global norm of the whole gradient; None does not clip.
      decay_steps: as in `adamw`; None keeps the rate.

    Raises:
      ValueError: for fewer than one step of decay.
    """
    rate = learning_rates(learning_rate, decay_steps)
    return optax.chain(_clip(grad_norm), optax.adam(rate, eps=1e-8))


def matrices(params: Params) -> Params:
    """Parameters of two axes or more."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def everything(params: Params) -> Params:
    """All parameters."""
    return jax.tree.map(lambda leaf: True, params)


def adamw(
    learning_rate: Scalar,
    decay_steps: int | None = None,
    weight_decay: Scalar = 0.0,
    grad_norm: Scalar | None = None,
    *,
    warmup: int = 0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    decays: Callable[[Params], Params] = matrices,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay and a rate that falls as half a cosine.

    Loshchilov & Hutter 2019, eqs. 12 and 14.

    Args:
      learning_rate: step size of the first update, or the largest one behind a warm-up.
      decay_steps: updates until it is 0, where it stays; None keeps it.
      weight_decay: share of a weight that goes for each unit of the step size.
      grad_norm: as in `adam`.
      warmup: as in `learning_rates`.
      betas: how much of its moments Adam keeps.
      eps: added to the root of the second moment.
      decays: which parameters decay, `params -> params` of truth values; by default
        matrices do, not biases or the scales of normalisation.

    Raises:
      ValueError: for fewer than one step of decay, or a warm-up that is no shorter.
    """
    decaying = optax.adamw(
        learning_rates(learning_rate, decay_steps, warmup),
        *betas,
        eps=eps,
        weight_decay=weight_decay,
        mask=decays,
    )
    return optax.chain(_clip(grad_norm), decaying)


def per_member(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """An optimiser for each member of an ensemble, along the leading axis.

    It matters where gradients are clipped: each member's norm is its own.
    """
    return optax.GradientTransformation(
        jax.vmap(optimizer.init), jax.vmap(optimizer.update)
    )


def learning_rates(
    learning_rate: Scalar, decay_steps: int | None = None, warmup: int = 0
) -> optax.ScalarOrSchedule:
    """The rate of every update, or one number where it stays.

    It rises in a line over W = `warmup` updates and falls as half a cosine, to 0 at
    update N = `decay_steps`: update n < W has n / W of it, so that the first one
    changes nothing, and a later one (1 + cos(pi (n - W) / (N - W))) / 2.

    Raises:
      ValueError: for fewer than one step of decay, or a warm-up that is no shorter.
    """
    at_least("warmup", warmup, 0)
    if decay_steps is None:
        if warmup == 0:
            return learning_rate
        rising = optax.linear_schedule(0.0, 1.0, warmup)
        return lambda count: learning_rate * rising(count)
    at_least("decay_steps", decay_steps)
    if warmup == 0:
        return optax.cosine_decay_schedule(learning_rate, decay_steps)
    if warmup >= decay_steps:
        raise ValueError(
            f"warmup must be less than decay_steps, {decay_steps}, got {warmup}"
        )
    # A rate may be traced, of which optax would ask whether it is 0.
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, decay_steps)
    return lambda count: learning_rate * shape(count)


def _clip(grad_norm: Scalar | None) -> optax.GradientTransformation:
    if grad_norm is None:
        return optax.identity()
    return optax.clip_by_global_norm(grad_norm)
