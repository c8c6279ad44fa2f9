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


def assert_rows(
    network: nn.Module, params: Any, x: jax.Array, k: jax.Array, condition: jax.Array
) -> None:
    """Two leading axes are rows, and a scalar step is that of all of them."""
    apply = jax.jit(network.apply)
    whole = apply(params, x, k, condition)
    one = apply(params, x[1, 2], k[1, 2], condition[1, 2])
    np.testing.assert_allclose(whole[1, 2], one, atol=1e-5)
    alike = apply(params, x, k[1, 2], condition)
    np.testing.assert_allclose(alike[1, 2], one, atol=1e-5)
    assert jnp.abs(alike - whole)[0].max() > 1e-3
