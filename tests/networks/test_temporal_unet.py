"""The temporal U-Net: what its numbers depend on, leading axes, sizes, refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.networks.mlp import MLP
from jdql.networks.temporal_layers import Film, LinearAttention, TemporalBlock
from jdql.networks.temporal_unet import TemporalUnet, check_horizon, check_widths
from tests.networks.filled import filled

SMALL = TemporalUnet((8, 16), step_dim=4, kernel=3, groups=4, modulation=Film)
TINY = TemporalUnet((8,), step_dim=4, kernel=3, groups=8, embed=MLP((4,), 4))


def size(network, *call) -> int:
    shapes = jax.eval_shape(network.init, jax.random.key(0), *call)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.fixture(scope="module")
def small():
    """A network with its parameters, sequences `[2, 3, 8, 2]`, steps, conditions."""
    x = jax.random.normal(jax.random.key(1), (2, 3, 8, 2))
    k = jnp.arange(6).reshape(2, 3)
    condition = jax.random.normal(jax.random.key(2), (2, 3, 5))
    params = filled(SMALL, x, k, condition)
    return params, x, k, condition


def test_leading_axes_are_rows(small):
    params, x, k, condition = small
    apply = jax.jit(SMALL.apply)
    whole = apply(params, x, k, condition)
    rows = apply(params, x.reshape(6, 8, 2), k.reshape(6), condition.reshape(6, 5))
    np.testing.assert_allclose(whole.reshape(6, 8, 2), rows, atol=1e-5)
    one = apply(params, x[1, 2], k[1, 2], condition[1, 2])
    np.testing.assert_allclose(whole[1, 2], one, atol=1e-5)


def test_a_scalar_step_is_the_step_of_every_row(small):
    params, x, _, condition = small
    apply = jax.jit(SMALL.apply)
    one = apply(params, x, jnp.array(3), condition)
    rows = apply(params, x, jnp.full((2, 3), 3), condition)
    np.testing.assert_allclose(one, rows, atol=1e-5)
    other = apply(params, x, jnp.array(4), condition)
    assert jnp.abs(one - other).max() > 1e-3


def test_longer_horizons_than_in_training(small):
    """Of a periodic sequence, the middle of a longer one nears a limit, as 1 / H.

    Convolutions see zeros at the two ends, which enter the statistics of the norms.
    """
    params, x, _, condition = small
    apply = jax.jit(SMALL.apply)
    periods = [jnp.tile(x[0, 0], (n, 1)) for n in (8, 16, 32)]
    made = [apply(params, one, jnp.array(2), condition[0, 0]) for one in periods]
    short, middle, long = (y[len(y) // 2 :][:8] for y in made)
    first, second = jnp.abs(middle - short).max(), jnp.abs(long - middle).max()
    assert 0.4 < second / first < 0.6
    assert second < 0.05 * jnp.abs(long).max()


def test_a_dropped_condition_is_not_a_condition_of_zero():
    x, k = jnp.ones((3, 4, 2)), jnp.array(1)
    zero = jnp.zeros((3, 1))
    params = filled(TINY, x, k, zero)
    apply = jax.jit(TINY.apply)
    dropped = apply(params, x, k, None)
    np.testing.assert_allclose(apply(params, x, k, zero, jnp.zeros(3)), dropped)
    assert jnp.abs(apply(params, x, k, zero) - dropped).max() > 1e-3
    some = apply(params, x, k, zero, jnp.array([1.0, 0.0, 1.0]))
    np.testing.assert_allclose(some[1], dropped[1])
    assert jnp.abs(some[0] - dropped[0]).max() > 1e-3


def test_linear_attention_written_out():
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    module = LinearAttention(heads=2, head_dim=3)
    params = filled(module, x)
    p = jax.tree.map(np.asarray, params["params"])
    centred = np.asarray(x - x.mean(-1, keepdims=True))
    unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    normed = unit * p["norm"]["scale"] + p["norm"]["bias"]
    q, k, v = np.split(normed @ p["qkv"]["kernel"], 3, axis=-1)
    keys = np.exp(k) / np.exp(k).sum(axis=1, keepdims=True)
    out = np.zeros((2, 3, 6))
    for head in (slice(0, 3), slice(3, 6)):  # of the channels
        for b in range(2):
            context = keys[b, :, head].T @ v[b, :, head]
            out[b, :, head] = q[b, :, head] @ context / np.sqrt(3)
    expected = x + out @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(jax.jit(module.apply)(params, x), expected, atol=1e-5)


def test_initialised_like_pytorch():
    block = TemporalBlock(64)
    x, condition = jnp.ones((2, 32)), jnp.ones(48)
    params = jax.jit(block.init)(jax.random.key(0), x, condition)["params"]
    first, shift = params["block_0"], params["modulation"]["dense"]
    pairs = {(5 * 32) ** -0.5: first["conv"], 32**-0.5: params["skip"]}
    for bound, layer in {**pairs, 48**-0.5: shift}.items():
        for leaf in (layer["kernel"], layer["bias"]):
            assert jnp.abs(leaf).max() <= bound
            assert leaf.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
    np.testing.assert_array_equal(first["norm"]["scale"], 1)
    np.testing.assert_array_equal(first["norm"]["bias"], 0)


def block_size(inputs: int, width: int, condition: int, film: bool) -> int:
    convs = 5 * inputs * width + 5 * width * width + 2 * width
    norms, skip = 4 * width, (inputs + 1) * width if inputs != width else 0
    return convs + norms + skip + (condition + 1) * width * (2 if film else 1)


def unet_size(D: int, widths: tuple, step: int, condition: int, film: bool) -> int:
    pairs = list(zip((D, *widths[:-1]), widths, strict=True))
    E = step + condition

    def level(inputs, width):
        return block_size(inputs, width, E, film) + block_size(width, width, E, film)

    down = sum(level(*pair) for pair in pairs)
    up = sum(level(2 * b, a) for a, b in pairs[1:])
    halves = sum(3 * w * w + w for w in widths[:-1])
    doubles = sum(4 * w * w + w for w in widths[:-1])
    first = widths[0]
    ends = 5 * first * first + first + 2 * first + (first + 1) * D
    steps = (step + 1) * 4 * step + (4 * step + 1) * step
    return steps + down + level(widths[-1], widths[-1]) + up + halves + doubles + ends


def test_the_papers_sizes():
    """Diffusion Policy on PushT: 20 numbers seen twice, 2 actions; Diffuser: hopper."""
    policy = TemporalUnet(modulation=Film)
    x, k = jnp.zeros((16, 2)), jnp.array(0)
    found = size(policy, x, k, jnp.zeros(40))
    assert found == unet_size(2, (256, 512, 1024), 256, 40, film=True)
    assert found == pytest.approx(65e6, rel=0.02)
    hopper = TemporalUnet((32, 64, 128, 256), 32)
    found = size(hopper, jnp.zeros((32, 14)), k)
    assert found == unet_size(14, (32, 64, 128, 256), 32, 0, film=False)


def test_a_horizon_that_the_levels_cannot_halve_is_refused(small):
    check_horizon(12, 3)
    with pytest.raises(ValueError, match=r"horizon=10 .* multiple of 4"):
        check_horizon(10, 3)
    with pytest.raises(ValueError, match="horizon=0"):
        check_horizon(0, 1)
    params, x, k, condition = small
    with pytest.raises(ValueError, match=r"horizon=7 .* multiple of 2"):
        jax.eval_shape(SMALL.apply, params, x[:, :, :7], k, condition)


def test_widths_that_the_norms_cannot_share_out_are_refused():
    check_widths((8, 12), 4)
    for widths, groups in (((8, 10), 4), ((12, 24), 4), ((), 8)):
        with pytest.raises(ValueError, match="multiples of its groups"):
            check_widths(widths, groups)
