"""Products whose operands are rounded to bfloat16, against NumPy in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.networks.mlp import Critic
from jdql.networks.products import product

X, W, G = (jax.random.normal(jax.random.key(i), (8, 8)) for i in range(3))


def rounded(x) -> np.ndarray:
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float64)


@pytest.fixture
def bfloat16():
    with jax.default_matmul_precision("bfloat16"):
        yield


def test_float32_is_the_plain_product():
    np.testing.assert_array_equal(product(X, W), X @ W)


@pytest.mark.usefixtures("bfloat16")
def test_operands_are_rounded_and_sums_are_not():
    made = product(X, W)
    assert made.dtype == jnp.float32
    np.testing.assert_allclose(made, rounded(X) @ rounded(W), rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(made) - np.asarray(X) @ np.asarray(W)).max() > 1e-3


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("shape", [(8, 8), (2, 4, 8), (8,)])
def test_gradients_are_products_of_rounded_operands(shape):
    x, g = (a.ravel()[: np.prod(shape)].reshape(shape) for a in (X, G))
    dx, dw = jax.vjp(product, x, W)[1](g)
    assert dx.shape == shape
    np.testing.assert_allclose(dx, rounded(g) @ rounded(W).T, rtol=1e-5, atol=1e-6)
    rows, gradients = rounded(x).reshape(-1, 8), rounded(g).reshape(-1, 8)
    np.testing.assert_allclose(dw, rows.T @ gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("bfloat16")
def test_an_ensemble_is_its_members():
    critic = Critic((8, 8))
    params = critic.init(jax.random.key(0), X, W)

    def q(params):
        return critic.apply(params, X, W)

    def loss(params):
        return jnp.sum(jnp.square(q(params)))

    both, gradients = jax.jit(q)(params), jax.jit(jax.grad(loss))(params)
    alone = Critic((8, 8), members=1)
    for i in range(2):
        member = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], params)
        np.testing.assert_allclose(alone.apply(member, X, W)[0], both[i], rtol=1e-6)
        own = jax.grad(lambda p: jnp.sum(jnp.square(alone.apply(p, X, W))))(member)
        for mine, theirs in zip(
            jax.tree.leaves(own), jax.tree.leaves(gradients), strict=True
        ):
            np.testing.assert_allclose(mine[0], theirs[i], rtol=1e-4, atol=1e-5)
