"""Optimisers and averages, by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jdql import optim


def test_polyak_moves_by_its_rate():
    new = optim.polyak({"a": jnp.array(1.0)}, {"a": jnp.array(3.0)}, 0.25)
    assert new["a"].item() == pytest.approx(1.5)


def test_select_takes_new_or_old():
    assert optim.select(jnp.asarray(True), jnp.array(1), jnp.array(2)).item() == 1
    assert optim.select(jnp.asarray(False), jnp.array(1), jnp.array(2)).item() == 2


def test_the_first_adam_step_has_the_size_of_the_learning_rate():
    optimizer = optim.adam(0.1)
    params = jnp.array([1.0, -2.0])
    new, _ = optim.gradient_step(
        optimizer, params, optimizer.init(params), jnp.array([5.0, -0.001])
    )
    np.testing.assert_allclose(new, [0.9, -1.9], rtol=1e-4)


def test_one_joint_norm_is_clipped():
    optimizer = optim.adam(1.0, grad_norm=1.0)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    _, state = optim.gradient_step(optimizer, params, optimizer.init(params), gradients)
    moments = state[1][0].mu  # (1 - 0.9) of the clipped gradient
    assert moments["a"].item() == pytest.approx(0.06)
    assert moments["b"].item() == pytest.approx(0.08)
