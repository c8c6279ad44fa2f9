"""Best of N: who is chosen how often, and which of the proposals is carried out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.rl import selection


def shares(select: selection.Selection, scores) -> np.ndarray:
    """How often each candidate is chosen."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    pick = jax.jit(jax.vmap(select, in_axes=(0, None)))
    return np.bincount(pick(keys, jnp.asarray(scores)), minlength=len(scores)) / 20_000


def test_choices_follow_the_softmax():
    q = np.log([1.0, 2.0, 5.0])
    found = shares(selection.softmax(1.0), q)
    np.testing.assert_allclose(found, [1 / 8, 2 / 8, 5 / 8], atol=0.015)
    found = shares(selection.softmax(0.5), q)
    np.testing.assert_allclose(found, [1 / 30, 4 / 30, 25 / 30], atol=0.015)


def test_the_law_of_the_softmax_by_hand():
    q = jnp.log(jnp.array([1.0, 2.0, 5.0]))
    law = selection.choice_probabilities(q, 0.5)
    np.testing.assert_allclose(law, [1 / 30, 4 / 30, 25 / 30], rtol=1e-5)
    law = selection.choice_probabilities(q)
    np.testing.assert_allclose(law, [1 / 8, 2 / 8, 5 / 8], rtol=1e-5)


@pytest.mark.parametrize("select", [selection.greedy, selection.softmax(0.0)])
def test_the_best_candidate_is_the_same_for_every_key(select):
    np.testing.assert_array_equal(shares(select, [0.1, 0.3, 0.2]), [0, 1, 0])


def test_a_temperature_may_be_traced():
    q, key = jnp.array([0.1, 0.3, 0.2]), jax.random.key(0)
    picks = jax.vmap(lambda t: selection.softmax(t)(key, q))(jnp.array([0.0, 1e-4]))
    np.testing.assert_array_equal(picks, [1, 1])


def test_the_implicit_policy_draws_in_proportion_to_the_weights():
    advantage = np.array([2.0, -1.0, 0.5, 5.0]) - 1.0
    found = shares(selection.of_advantages("implicit", 0.9), advantage)
    np.testing.assert_allclose(found, [0.45, 0.05, 0.05, 0.45], atol=0.01)


def test_the_implicit_policys_mean_value_is_v():
    """Two points: resampled by the weights, Q has mean V, its expectile, exactly."""
    tau, p = 0.8, 0.25
    v = tau * p / (tau * p + (1 - tau) * (1 - p))
    q = np.array([1.0, 0.0, 0.0, 0.0])  # the behaviour policy's candidates
    found = shares(selection.implicit(tau), q - v)
    assert (found * q).sum().item() == pytest.approx(v, abs=0.01)


def test_selections_have_names():
    assert selection.of_advantages("best", 0.7) is selection.greedy
    with pytest.raises(ValueError, match=r"\['best', 'implicit'\], got 'argmax'"):
        selection.of_advantages("argmax", 0.7)


def test_one_of_each_group_is_taken():
    actions = jnp.arange(12.0).reshape(2, 3, 2)
    taken = selection.take(actions, jnp.array([2, 0]))
    np.testing.assert_array_equal(taken, [[4, 5], [6, 7]])
    np.testing.assert_array_equal(selection.take(actions[0], jnp.array(1)), [2, 3])


def propose(learned, observations, key):
    """0, 1, 2, ... and a little noise, beside the state."""
    count = len(observations)
    rank = jnp.arange(float(count)) + 0.01 * jax.random.uniform(key, (count,))
    return jnp.concatenate([rank[:, None], observations], axis=1)


def score(learned, observations, actions):
    """The best is `learned` times what is seen."""
    return -jnp.abs(actions[:, 0] - learned * observations[:, 0])


def test_the_policy_carries_out_what_it_chooses_by_the_scores():
    plan = jax.jit(selection.best_of(3, propose, score, selection.greedy))
    observation, key = jnp.array([0.5, 7.0]), jax.random.key(3)
    action = plan(2.0, observation, key)
    # The noise of the proposals is of the first half of the key.
    noise = jax.random.uniform(jax.random.split(key)[0], (3,))[1]
    np.testing.assert_allclose(action, [1.0 + 0.01 * noise, 0.5, 7.0], rtol=1e-6)
    assert plan(4.0, observation, key)[0] >= 2.0


def test_a_policy_without_candidates_is_refused():
    with pytest.raises(ValueError, match="candidates must be at least 1, got 0"):
        selection.best_of(0, propose, score, selection.greedy)
