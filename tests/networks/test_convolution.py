"""Convolutions as matrix products: by hand, and against XLA's own."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.networks.convolution import Convolution, Spreading, convolve, spread


def test_three_taps_by_hand():
    x = jnp.array([[1.0], [2.0], [4.0], [8.0]])
    kernel = jnp.array([100.0, 10.0, 1.0]).reshape(3, 1, 1)
    # The tap before, the one at, and the one behind a step; zeros beyond the ends.
    every = [12, 124, 248, 480]
    assert convolve(x, kernel)[:, 0].tolist() == every
    assert convolve(x, kernel, 2)[:, 0].tolist() == every[::2]
    assert convolve(x[:3], kernel, 2)[:, 0].tolist() == [12, 240]


def test_spreading_by_hand():
    x = jnp.array([[1.0], [2.0]])
    kernel = jnp.array([1000.0, 100.0, 10.0, 1.0]).reshape(4, 1, 1)
    # Even steps: kernel 0 of the one before, 2 of the one at; odd ones: 1 and 3.
    assert spread(x, kernel)[:, 0].tolist() == [10, 102, 1020, 200]


@pytest.mark.parametrize("shape", [(8, 3), (2, 7, 3), (2, 3, 6, 3)])
@pytest.mark.parametrize("taps", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_are_those_of_flax(shape, taps, stride):
    x = jax.random.normal(jax.random.key(0), shape)
    own = Convolution(4, taps, stride)
    params = own.init(jax.random.key(1), x)
    reach = taps // 2
    theirs = nn.Conv(4, (taps,), stride, padding=((reach, reach),))
    expected = theirs.apply(params, x)
    np.testing.assert_allclose(own.apply(params, x), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3), (2, 4, 3), (2, 3, 5, 3)])
def test_spreading_is_that_of_flax(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    params = Spreading(3).init(jax.random.key(1), x)
    expected = nn.ConvTranspose(3, (4,), (2,), "SAME").apply(params, x)
    np.testing.assert_allclose(Spreading(3).apply(params, x), expected, atol=1e-5)


def test_parameters_begin_within_pytorchs_bounds():
    params = Convolution(64, 5).init(jax.random.key(0), jnp.zeros((4, 20)))["params"]
    for leaf in params.values():
        assert 0.08 < jnp.abs(leaf).max() <= 0.1
