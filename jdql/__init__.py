"""jdql: diffusion policies for offline reinforcement learning in JAX."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jdql.runtime.trained import Trained

__version__ = "0.1.0"


def load(
    folder: str | PathLike[str],
    step: str | int = "last",
    seed: int | None = None,
    **settings: Any,
) -> Trained:
    """Loads a trained policy: `jdql.load("runs/w2d", step="best", seed=3)`.

    See `jdql.runtime.trained.load`, which it calls; everything heavy is imported there.
    """
    from jdql.runtime import trained

    return trained.load(folder, step, seed, **settings)
