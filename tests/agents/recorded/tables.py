"""Tables of a chain as code computes them that rounds every number to float32."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jdql.diffusion import constraints, process, reverse, samplers, schedules
from jdql.types import Constraint


class Tables(NamedTuple):
    """What the authors' code computes of its betas, every operation in float32.

    Attributes:
      process: the schedule that noises.
      estimate: the one that reads x_0 off a prediction, by sqrt(1 / abar - 1).
      steps: of the chain with the posterior's variance.
    """

    process: schedules.Schedule
    estimate: schedules.Schedule
    steps: reverse.ReverseSteps


def in_single_precision(betas: np.ndarray) -> Tables:
    """The tables of `[K]` betas."""
    one, beta = np.float32(1), betas.astype(np.float32)
    abar = np.cumprod((one - beta).astype(np.float64)).astype(np.float32)
    before = np.append(one, abar[:-1])
    posterior = reverse.ReverseSteps(
        np.arange(len(beta), dtype=np.int32),
        beta * np.sqrt(before) / (one - abar),
        (one - before) * np.sqrt(one - beta) / (one - abar),
        np.sqrt(beta * (one - before) / (one - abar)),
    )
    # What follows of abar as it is rounded needs no rounding of its own.
    signal, noise = np.sqrt(np.float64(abar)), np.sqrt(np.float64(one - abar))
    ratio = np.sqrt(np.float64(one / abar - one))  # but this loses abar's last digits
    return Tables(
        schedules.Schedule(np.float64(beta), signal, noise),
        schedules.Schedule(np.float64(beta), signal, signal * ratio),
        reverse.ReverseSteps(*(column[::-1] for column in posterior)),
    )


def loses_digits(betas: np.ndarray) -> bool:
    """Whether 1 - abar_0 = beta_0 keeps fewer than five digits in float32.

    The last step of a chain is then beta_0 / (1 - abar_0) times x0_hat, and no longer
    x0_hat.
    """
    return betas[0] < 2e-3


def rounded_sampler(
    tables: Tables,
    to_bounds: Constraint,
    of_result: Constraint = constraints.unconstrained,
) -> samplers.Sampler:
    """The ancestral chain by rounded tables, x0_hat within bounds.

    The result may lie beyond them by the rounding, if nothing holds it.
    """

    def sample(predict, draws, guide=None, clamp=None):
        assert guide is clamp is None
        free = process.denoiser(tables.estimate, predict)
        denoiser = constraints.constrain(free, to_bounds)
        return of_result(reverse.reverse_chain(denoiser, tables.steps, draws))

    return samplers.Sampler(tables.steps.steps, sample)
