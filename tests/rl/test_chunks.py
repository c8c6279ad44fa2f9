"""Action chunks by hand: returns, targets, and which chunks count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.rl import chunks, ensembles
from jdql.types import Chunk

# Three steps each: whole; a true end at the last step; a true end, a time-out after two
BATCH = Chunk(
    observation=jnp.zeros((4, 1)),
    action=jnp.arange(24.0).reshape(4, 3, 2),
    reward=jnp.array([[1.0, 2, 4], [1, 2, 4], [1, 2, 0], [1, 2, 0]]),
    valid=jnp.array([[1.0, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0]]),
    mask=jnp.array([1.0, 0, 0, 1]),
    next_observation=jnp.zeros((4, 1)),
)


def test_target_by_hand():
    # 1 + 0.5 * 2 + 0.25 * 4 = 3, and 0.5^3 * 80 = 10; a true end cuts both
    target = chunks.chunk_target(BATCH, jnp.full(4, 80.0), 0.5)
    np.testing.assert_allclose(target[:3], [13.0, 3.0, 2.0])


def test_target_of_one_step_is_exactly_the_ordinary_one():
    reward, value = jnp.array([[0.3], [0.1]]), jnp.array([7.7, -1.3])
    batch = BATCH._replace(reward=reward, mask=jnp.array([1.0, 0.0]))
    expected = reward[:, 0] + 0.99 * jnp.array([1.0, 0.0]) * value
    np.testing.assert_array_equal(chunks.chunk_target(batch, value, 0.99), expected)


def test_the_critic_learns_from_whole_chunks_and_on_request_from_ended_ones():
    np.testing.assert_array_equal(chunks.critic_weight(BATCH), [1, 1, 0, 0])
    np.testing.assert_array_equal(chunks.critic_weight(BATCH, True), [1, 1, 1, 0])


def test_critic_loss_by_hand():
    q = jnp.array([[1.0, 5.0], [2.0, 7.0]])
    loss = chunks.chunk_critic_loss(q, jnp.array([3.0, 1.0]), jnp.array([1.0, 0.0]))
    assert float(loss) == pytest.approx((4 + 1) / 4)


def test_flattened_actions_and_their_mask_have_one_order():
    np.testing.assert_array_equal(chunks.flat_action(BATCH)[1], np.arange(6, 12))
    np.testing.assert_array_equal(chunks.action_mask(BATCH)[3], [1, 1, 1, 1, 0, 0])


def test_the_loss_of_chunks_leaves_out_what_it_cannot_value():
    q = jnp.array([[14.0, 3.0, 0.0, 9.0], [13.0, 5.0, 9.0, 0.0]])
    loss, metrics = chunks.chunk_td_loss(q, BATCH, jnp.full(4, 80.0), 0.5)
    # Targets 13, 3, 2; the third and the fourth are cut: 1, 0 and 0, 4 remain.
    assert loss.item() == pytest.approx((1 + 0 + 0 + 4) / 8)
    assert metrics["chunks_used"].item() == 0.5
    assert metrics["q_mean"].item() == pytest.approx(53 / 8)
    loss, metrics = chunks.chunk_td_loss(q, BATCH, jnp.full(4, 80.0), 0.5, True)
    assert loss.item() == pytest.approx((1 + 0 + 0 + 4 + 4 + 49) / 8)
    assert metrics["chunks_used"].item() == 0.75


def test_the_value_after_a_chunk_is_not_taught():
    def loss(value):
        return chunks.chunk_td_loss(jnp.ones((2, 4)), BATCH, value, 0.5)[0]

    np.testing.assert_array_equal(jax.grad(loss)(jnp.ones(4)), 0)


def test_cloning_counts_valid_numbers_out_of_all():
    error = chunks.masked_error(BATCH)(jnp.full((4, 6), 3.0))
    np.testing.assert_allclose(error, [9.0, 9.0, 6.0, 6.0])


def test_aggregates_by_hand():
    q = jnp.array([[1.0, 5.0], [3.0, 1.0]])
    np.testing.assert_array_equal(ensembles.aggregate("mean")(q), [2.0, 3.0])
    np.testing.assert_array_equal(ensembles.aggregate("min")(q), [1.0, 1.0])
    with pytest.raises(ValueError, match=r"q_agg must be one of \['mean', 'min'\]"):
        ensembles.aggregate("max")
