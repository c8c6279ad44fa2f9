"""The diffusion transformer: its start, numpy's numbers, leading axes, size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.networks.dit import DiT, DiTBlock, FourierStep, SequenceValue
from jdql.networks.mlp import MLP
from tests.networks.filled import assert_rows, filled
from tests.networks.test_temporal_unet import size

TINY = DiT(8, 2, 2, 8, embed=MLP((4,), 8))


@pytest.fixture(scope="module")
def tiny():
    """Parameters, sequences `[2, 3, 5, 2]`, their steps and conditions `[.., 1]`."""
    x = jax.random.normal(jax.random.key(1), (2, 3, 5, 2))
    k = jnp.arange(6).reshape(2, 3)
    condition = jax.random.normal(jax.random.key(2), (2, 3, 1))
    return filled(TINY, x, k, condition), x, k, condition


def test_at_first_blocks_are_identities_and_the_output_is_zero(tiny):
    _, x, k, condition = tiny
    one = x[0, 0], k[0, 0], condition[0, 0]
    params = jax.jit(TINY.clone(depth=1).init)(jax.random.key(0), *one)
    tokens, seen = jnp.ones((5, 8)) * jnp.arange(8), jnp.arange(8.0)
    inner = {"params": params["params"]["block_0"]}
    np.testing.assert_array_equal(DiTBlock(2).apply(inner, tokens, seen), tokens)
    np.testing.assert_array_equal(TINY.clone(depth=1).apply(params, *one), 0)
    drawn = inner["params"]["attention"]["query"]["kernel"]
    assert 0.3 < jnp.abs(drawn).max() <= (6 / (8 + 24)) ** 0.5


def normed(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def attention(p, x):
    """Of two heads, of two numbers each."""
    out = p["out"]["bias"]
    for head in range(2):
        q, k, v = (
            x @ p[part]["kernel"][:, head] + p[part]["bias"][head]
            for part in ("query", "key", "value")
        )
        weights = np.exp(q @ k.T / np.sqrt(2))
        mean = weights @ v / weights.sum(-1, keepdims=True)
        out = out + mean @ p["out"]["kernel"][head]
    return out


def mlp(p, x):
    first, last = p["Dense_0"], p["Dense_1"]
    y = x @ first["kernel"] + first["bias"]
    y = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    return y @ last["kernel"] + last["bias"]


def test_block_equals_numpy():
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    condition = np.random.default_rng(2).normal(size=4).astype(np.float32)
    params = filled(DiTBlock(2), x, condition)
    p = jax.tree.map(np.asarray, params["params"])
    swish = condition / (1 + np.exp(-condition))
    numbers = swish @ p["modulation"]["kernel"] + p["modulation"]["bias"]
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = np.split(numbers, 6)
    inner = normed(x) * (1 + scale_a) + shift_a
    expected = x + gate_a * attention(p["attention"], inner)
    inner = normed(expected) * (1 + scale_m) + shift_m
    expected = expected + gate_m * mlp(p["mlp"], inner)
    found = jax.jit(DiTBlock(2).apply)(params, x, condition)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_value_of_a_sequence_equals_numpy():
    network = SequenceValue(4, 2, 2)
    x = np.random.default_rng(1).normal(size=(2, 3, 5, 2)).astype(np.float32)
    params = filled(network, x)
    p = jax.tree.map(np.asarray, params["params"])
    # Sinusoids of two frequencies, 1 and 1 / 10000.
    angles = np.arange(5)[:, None] * [1.0, 1e-4]
    y = x[1, 2] @ p["enter"]["kernel"] + p["enter"]["bias"]
    y = y + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    for i in range(2):
        block = p[f"block_{i}"]
        y = normed(y)
        y = y + attention(block["attention"], y)
        y = y + mlp(block["mlp"], normed(y))
    expected = y[0] @ p["leave"]["kernel"][:, 0] + p["leave"]["bias"][0]
    found = jax.jit(network.apply)(params, x)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found[1, 2], expected, atol=1e-5)
    with pytest.raises(ValueError, match="heads=3"):
        SequenceValue(4, 3).init(jax.random.key(0), jnp.asarray(x))


def test_leading_axes_are_rows_and_a_scalar_step_is_that_of_all(tiny):
    assert_rows(TINY, *tiny)


def test_a_dropped_condition_is_not_a_condition_of_zero(tiny):
    params, x, k, condition = tiny
    apply = jax.jit(TINY.apply)
    dropped = apply(params, x, k)
    keep = jnp.array([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    some = apply(params, x, k, condition, keep)
    whole = apply(params, x, k, condition)
    chosen = jnp.where(keep[..., None, None] == 1, whole, dropped)
    np.testing.assert_allclose(some, chosen, atol=1e-5)
    zero = apply(params, x, k, 0 * condition)
    assert jnp.abs(zero - dropped).max(axis=(-1, -2)).min() > 1e-4
    assert jnp.abs(whole - dropped).max(axis=(-1, -2)).min() > 1e-4


def test_every_step_of_the_sequence_sees_every_other_and_its_place(tiny):
    params, x, k, condition = tiny
    call = k[0, 0], condition[0, 0]
    slopes = jax.jit(jax.jacrev(TINY.apply, argnums=1))(params, x[0, 0], *call)
    assert (jnp.abs(slopes).max(axis=(1, 3)) > 0).all()
    same = jax.jit(TINY.apply)(params, jnp.ones((7, 2)), *call)  # another horizon
    assert jnp.abs(jnp.diff(same, axis=0)).max(axis=1).min() > 1e-4


def test_fourier_features_of_a_time():
    module, times = FourierStep(16), jnp.array([0.1, 0.7])
    params = filled(module, times)
    p = jax.tree.map(np.asarray, params["params"])
    angles = 2 * np.pi * np.asarray(times)[:, None] * p["frequencies"]
    y = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    first, last = p["layers"]["Dense_0"], p["layers"]["Dense_1"]
    y = y @ first["kernel"] + first["bias"]
    y = y * np.tanh(np.logaddexp(0, y)) @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(jax.jit(module.apply)(params, times), y, atol=1e-5)

    def total(params):
        return module.apply(params, times).sum()

    gradient = jax.jit(jax.grad(total))(params)["params"]
    np.testing.assert_array_equal(gradient["frequencies"], 0)


def test_the_size_of_cleandiffusers_decision_diffuser():
    network = DiT(step=FourierStep, embed=MLP((128,), 128))
    found = size(network, jnp.zeros((32, 11)), jnp.array(0.5), jnp.zeros(1))
    w, E = 320, 128
    block = 4 * (w * w + w) + (w + 1) * 4 * w + (4 * w + 1) * w + (w + 1) * 6 * w
    step = E // 8 + (E // 4 + 1) * E + (E + 1) * E
    embed = 2 * E + (E + 1) * E
    ends = (11 + 1) * w + (w + 1) * 2 * w + (w + 1) * 11
    assert found == 2 * block + step + embed + (E + 1) * w + (w + 1) * w + ends


def test_the_size_of_diffusion_veterans_value():
    w = 256
    block = 4 * (w * w + w) + (w + 1) * 4 * w + (4 * w + 1) * w
    found = size(SequenceValue(), jnp.zeros((32, 4)))
    assert found == 5 * w + 2 * block + (w + 1)


def test_refused_sizes(tiny):
    params, x, k, condition = tiny
    with pytest.raises(ValueError, match="heads=3"):
        jax.eval_shape(TINY.clone(heads=3).apply, params, x, k, condition)
    with pytest.raises(ValueError, match=r"condition of 1 numbers .* embed it in 8"):
        jax.eval_shape(TINY.clone(embed=None).apply, params, x, k, condition)
