"""Observations on one scale: shifted and scaled by statistics of the training data.

The arrays are scaled once, when they are loaded.  The statistics become part of the
policy (`jdql.agents.base.scaled`): they are saved with it, and acting takes the
environment's own observations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jdql.config import DataConfig
from jdql.types import Array, Float

CONSTANT = 1e-6  # a column that varies less, relative to its size, is a constant


class Scaling(NamedTuple):
    """The map `(observation - mean) * scale`, column by column, in float32."""

    mean: Float[Array, " O"]
    scale: Float[Array, " O"]

    def __call__(self, observation: Any) -> Any:
        """Scaled observations [*B, O], of NumPy or of JAX as they came."""
        return (observation - self.mean) * self.scale


def fit(observation: Any, config: DataConfig) -> Scaling | None:
    """The scaling of training data.

    With `standardize` each column gets mean 0 and standard deviation 1 (divisor N); a
    constant column is shifted to 0 and not scaled.  The columns of `ignore` become 0
    everywhere, whatever is seen in them.

    Args:
      observation: Of all transitions, [N, O].
      config: `standardize` and `ignore` are used.

    Returns:
      The map, float32; None where the config scales no observations.

    Raises:
      ValueError: a column to ignore does not exist.
    """
    if not (config.standardize or config.ignore):
        return None
    values = np.asarray(observation, np.float64)
    size = values.shape[1]
    mean, scale = np.zeros(size), np.ones(size)
    if config.standardize:
        mean, std = values.mean(axis=0), values.std(axis=0)
        constant = std <= CONSTANT * np.maximum(1.0, np.abs(mean))
        scale = 1.0 / np.where(constant, 1.0, std)
    for column in config.ignore:
        if not 0 <= column < size:
            raise ValueError(
                f"data.ignore names column {column}, but observations have columns 0 "
                f"to {size - 1}"
            )
        scale[column] = 0.0
    wide: Any = (mean.astype(np.float32), scale.astype(np.float32))
    return Scaling(*wide)


def blank(config: DataConfig, observation_dim: int) -> Scaling | None:
    """One of the right shapes that changes nothing, to restore another into.

    None where the config scales no observations.
    """
    if not (config.standardize or config.ignore):
        return None
    ones: Any = np.ones(observation_dim, np.float32)
    return Scaling(np.zeros_like(ones), ones)
