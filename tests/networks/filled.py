"""Parameters for tests: compiling the draws of a deep network takes its time."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def filled(network: nn.Module, *call: Any, seed: int = 0) -> Any:
    """Parameters drawn by NumPy: normal, in deviation 1/sqrt(fan in), scales around 1.

    No scale is 1 and no bias 0, so that a layer that is left out is seen.
    """
    shapes = jax.eval_shape(network.init, jax.random.key(0), *call)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        fan_in = max(1, int(np.prod(leaf.shape[:-1]))) if leaf.ndim > 1 else 4
        value = rng.normal(size=leaf.shape) * fan_in**-0.5
        return jnp.asarray(value + (path[-1].key == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
