"""The chunk transformer: who sees what, dropout, leading axes, size, refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.networks.transformer import ChunkTransformer, check_heads
from tests.networks.filled import assert_rows, filled
from tests.networks.test_temporal_unet import size

H, C = 5, 3
TINY = ChunkTransformer(layers=2, heads=2, width=8)


@pytest.fixture(scope="module")
def tiny():
    """Parameters, chunks `[2, 3, H, 2]`, their steps, and observations `[.., C, 4]`."""
    x = jax.random.normal(jax.random.key(1), (2, 3, H, 2))
    k = jnp.arange(6).reshape(2, 3)
    condition = jax.random.normal(jax.random.key(2), (2, 3, C, 4))
    return filled(TINY, x, k, condition), x, k, condition


def seen(network, params, x, k, condition):
    """Whether an action depends on each action `[H, H]` and observation `[H, C]`."""

    @jax.jit
    def slopes(x, condition):
        return jax.jacrev(network.apply, argnums=(1, 3))(params, x, k, condition)

    by = slopes(x, condition)
    return tuple(np.abs(slope).max(axis=(1, 3)) > 0 for slope in by)


def test_an_action_sees_no_later_action_and_no_later_observation(tiny):
    params, x, k, condition = tiny
    actions, observations = seen(TINY, params, x[0, 0], k[0, 0], condition[0, 0])
    t = np.arange(H)[:, None]
    np.testing.assert_array_equal(actions, np.arange(H) <= t)
    np.testing.assert_array_equal(observations, np.arange(C) <= t)


def test_without_masks_and_positions_tokens_are_sets(tiny):
    params, x, k, condition = tiny
    network = TINY.clone(causal=False)
    positions = ("positions", "memory_positions")
    nowhere = {name: 0 * params["params"][name] for name in positions}
    params = {"params": {**params["params"], **nowhere}}
    call = k[0, 0], condition[0, 0]
    apply = jax.jit(network.apply)
    found = apply(params, x[0, 0], *call)
    turned = apply(params, x[0, 0, ::-1], *call)
    np.testing.assert_allclose(turned[::-1], found, atol=1e-5)
    turned = apply(params, x[0, 0], k[0, 0], condition[0, 0, ::-1])
    np.testing.assert_allclose(turned, found, atol=1e-5)
    for sees in seen(network, params, x[0, 0], *call):
        assert sees.all()


def test_leading_axes_are_rows_and_a_scalar_step_is_that_of_all(tiny):
    assert_rows(TINY, *tiny)


def test_without_observations_it_sees_the_step_alone(tiny):
    _, x, k, _ = tiny
    params = filled(TINY, x, k)
    assert params["params"]["memory_positions"].shape == (1, 8)
    apply = jax.jit(TINY.apply)
    assert jnp.abs(apply(params, x, k) - apply(params, x, k + 1)).max() > 1e-3


def test_dropout_is_off_unless_asked_for(tiny):
    params, x, k, condition = tiny
    network = TINY.clone(layers=1, dropout=0.5, token_dropout=0.5)
    apply = jax.jit(network.apply, static_argnums=4)
    plain = jax.jit(TINY.clone(layers=1).apply)(params, x, k, condition)
    np.testing.assert_array_equal(apply(params, x, k, condition), plain)

    def dropped(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return apply(params, x, k, condition, False, rngs=rngs)

    np.testing.assert_array_equal(dropped(0), dropped(0))
    assert jnp.abs(dropped(0) - plain).min() > 0
    rows = np.abs(dropped(0) - dropped(1)).max(axis=(-1, -2))
    assert rows.min() > 1e-3


def test_initialised_as_the_authors_do():
    network = ChunkTransformer(layers=1, heads=2, width=64)
    x, condition = jnp.ones((16, 2)), jnp.ones((2, 20))
    params = jax.jit(network.init)(jax.random.key(0), x, jnp.array(0), condition)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["params"]):
        name = path[-1].key
        if name in ("bias", "scale"):
            np.testing.assert_array_equal(leaf, float(name == "scale"))
        else:
            few = leaf.size < 1000
            assert leaf.std().item() == pytest.approx(0.02, rel=0.3 if few else 0.1)
            assert abs(leaf.mean().item()) < 0.004


def test_the_authors_size_on_pusht():
    """20 numbers seen twice, chunks of 10 positions of 2 numbers (their settings)."""
    found = size(ChunkTransformer(), jnp.zeros((10, 2)), 0, jnp.zeros((2, 20)))
    w = 256
    wide = (w + 1) * 4 * w + (4 * w + 1) * w
    layer = 2 * 4 * (w * w + w) + 3 * 2 * w + wide
    ends = (2 + 1) * w + (20 + 1) * w + (10 + 3) * w + 2 * w + (w + 1) * 2
    assert found == 8 * layer + wide + ends


def test_a_width_that_the_heads_cannot_share_out_is_refused(tiny):
    check_heads(8, 4)
    for width, heads in ((10, 4), (9, 3), (2, 1), (8, 0)):
        with pytest.raises(ValueError, match="multiple of the number of heads"):
            check_heads(width, heads)
    params, *call = tiny
    with pytest.raises(ValueError, match="heads=3"):
        jax.eval_shape(TINY.clone(heads=3).apply, params, *call)
