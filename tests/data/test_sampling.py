from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.data.dataset import Dataset, from_arrays
from jdql.data.sampling import chunks, futures, geometric_delay, transitions

N = 8
draw_chunks = jax.jit(chunks, static_argnums=(2, 3))
draw_futures = jax.jit(futures, static_argnums=(2, 4))


def numpy(tree):
    """Arrays on the host, where taking one row costs little."""
    return jax.tree.map(np.asarray, tree)


def numbered():
    """Transition i holds i in every field; 3 is a true end, 5 a time-out."""
    i = np.arange(N, dtype=np.float32)
    data = from_arrays(
        i[:, None], i[:, None], i, i[:, None] + 1, i == 3, timeout=i == 5
    )
    return jax.tree.map(jnp.asarray, data)


def test_rows_stay_together_and_timeouts_bootstrap():
    batch = transitions(jax.random.key(0), numbered(), 256)
    row = np.asarray(batch.reward)
    assert batch.observation.shape == (256, 1)
    np.testing.assert_array_equal(batch.observation[:, 0], row)
    np.testing.assert_array_equal(batch.action[:, 0], row)
    np.testing.assert_array_equal(batch.next_observation[:, 0], row + 1)
    np.testing.assert_array_equal(batch.mask, np.where(row == 3, 0.0, 1.0))
    assert batch.mask.dtype == jnp.float32


def test_every_row_is_equally_likely():
    batch = transitions(jax.random.key(1), numbered(), 80_000)
    counts = np.bincount(np.asarray(batch.reward, int), minlength=N)
    # 10,000 each, standard deviation 94
    assert np.abs(counts - 10_000).max() < 500


def test_inside_scan_inside_vmap():
    data = numbered()

    @jax.jit
    @jax.vmap
    def chunk(key):
        def step(carry, k):
            return carry, transitions(k, data, 4).reward

        return jax.lax.scan(step, 0, jax.random.split(key, 3))[1]

    keys = jax.random.split(jax.random.key(2), 2)
    rewards = chunk(keys)
    assert rewards.shape == (2, 3, 4)
    alone = transitions(jax.random.split(keys[1], 3)[2], data, 4).reward
    np.testing.assert_array_equal(rewards[1, 2], alone)


# By first row, for chunks of three of `numbered`: valid steps, bootstraps, last row
CHUNKS = {
    0: ([1, 1, 1], 1, 2),
    1: ([1, 1, 1], 0, 3),  # the true end is the last step
    2: ([1, 1, 0], 0, 3),  # the true end cuts
    3: ([1, 0, 0], 0, 3),
    4: ([1, 1, 0], 1, 5),  # the time-out cuts
    5: ([1, 0, 0], 1, 5),
    6: ([1, 1, 0], 1, 7),  # the end of the data
    7: ([1, 0, 0], 1, 7),
}


def test_chunks_stop_at_the_end_of_their_episode():
    batch = numpy(draw_chunks(jax.random.key(0), numbered(), 256, 3))
    assert batch.action.shape == (256, 3, 1)
    first = np.asarray(batch.observation[:, 0], int)
    assert set(first) == set(CHUNKS)
    for b, i in enumerate(first):
        valid, mask, last = CHUNKS[i]
        rows = np.minimum(np.arange(i, i + 3), last)
        np.testing.assert_array_equal(batch.valid[b], valid)
        np.testing.assert_array_equal(batch.action[b, :, 0], rows)
        np.testing.assert_array_equal(batch.reward[b], rows * np.array(valid))
        assert batch.mask[b] == mask
        assert batch.next_observation[b, 0] == last + 1


def test_a_chunk_may_be_longer_than_all_of_the_data():
    batch = numpy(draw_chunks(jax.random.key(0), numbered(), 64, 20))
    first = np.asarray(batch.observation[:, 0], int)
    lengths = np.array([4, 3, 2, 1, 2, 1, 2, 1])[first]
    np.testing.assert_array_equal(batch.valid.sum(axis=1), lengths)
    np.testing.assert_array_equal(batch.next_observation[:, 0], first + lengths)


def test_chunks_of_one_are_transitions():
    single = transitions(jax.random.key(3), numbered(), 64)
    batch = draw_chunks(jax.random.key(3), numbered(), 64, 1)
    assert batch.valid.all()
    np.testing.assert_array_equal(batch.observation, single.observation)
    np.testing.assert_array_equal(batch.action[:, 0], single.action)
    np.testing.assert_array_equal(batch.reward[:, 0], single.reward)
    np.testing.assert_array_equal(batch.mask, single.mask)
    np.testing.assert_array_equal(batch.next_observation, single.next_observation)


def mixed(n: int = 300) -> Dataset:
    """Episodes of all lengths from one row on, with true ends and time-outs."""
    g = np.random.default_rng(0)
    ends = g.random(n) < 0.3
    terminal = ends & (g.random(n) < 0.5)
    data = from_arrays(
        g.normal(size=(n, 2)),
        g.normal(size=(n, 1)),
        g.normal(size=n),
        g.normal(size=(n, 2)),
        terminal,
        ends & ~terminal,
    )
    return Dataset(*map(jnp.asarray, data))


@pytest.mark.parametrize("length", [2, 5, 400])
def test_chunks_equal_those_that_walk_from_flag_to_flag(length):
    """Row by row in Python, without episode bounds, from the first rows of the key."""
    data = mixed()
    key = jax.random.key(length)
    batch = numpy(draw_chunks(key, data, 64, length))
    first = jax.random.randint(key, (64,), 0, data.size)
    data = numpy(data)
    done = data.terminal | data.timeout
    for b, row in enumerate(first.tolist()):
        steps, valid = [row], [1]
        while len(steps) < length:
            valid.append(0 if done[steps[-1]] else valid[-1])
            steps.append(steps[-1] + valid[-1])
        np.testing.assert_array_equal(batch.observation[b], data.observation[row])
        np.testing.assert_array_equal(batch.action[b], data.action[np.array(steps)])
        np.testing.assert_array_equal(
            batch.reward[b], data.reward[np.array(steps)] * np.array(valid)
        )
        np.testing.assert_array_equal(batch.valid[b], valid)
        assert batch.mask[b] == 1 - data.terminal[steps[-1]]
        np.testing.assert_array_equal(
            batch.next_observation[b], data.next_observation[steps[-1]]
        )


def delay_probabilities(most: int, gamma: float, absorbing: bool) -> np.ndarray:
    """P(d), d = 0..most, from the definition of the geometric distribution."""
    p = (1 - gamma) * gamma ** np.arange(most + 1.0)
    if absorbing:
        p[most] = 1 - p[:most].sum()
        return p
    return p / p.sum()


@pytest.mark.parametrize("absorbing", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("most", [0, 1, 7, 400])
def test_delays_have_their_exact_probabilities(most, gamma, absorbing):
    """Over a fine grid of quantiles, of which every delay gets its share."""
    n = 200_000
    u = jnp.asarray((np.arange(n) + 0.5) / n, jnp.float32)
    ends = jnp.full(n, absorbing)
    delay = jax.jit(geometric_delay)(u, jnp.full(n, most), gamma, ends)
    share = np.bincount(np.asarray(delay), minlength=most + 1) / n
    expected = delay_probabilities(most, gamma, absorbing)
    np.testing.assert_allclose(share, expected, atol=2e-5)


def test_a_delay_of_the_largest_quantiles_stays_in_the_episode():
    u = jnp.array([1.0, 2.0**-24, 1e-30])
    for absorbing in (True, False):
        delay = geometric_delay(u, jnp.full(3, 4), 0.5, jnp.full(3, absorbing))
        assert delay.tolist() == [0, 4, 4]


@pytest.mark.parametrize("least", [0, 1])
def test_futures_have_the_distribution_of_the_discounted_occupancy(least):
    """Every pair of a transition and a later state, by a chi-square test."""
    gamma, data = 0.7, numbered()
    n = 100_000
    batch = numpy(draw_futures(jax.random.key(5), data, n, gamma, least))
    row = np.asarray(batch.transition.reward, int)
    np.testing.assert_array_equal(batch.future[:, 0], row + np.asarray(batch.delay))
    statistic, cells = 0.0, 0
    # (first row, last row, true end) of the episodes of `numbered`
    for begin, last, true_end in ((0, 3, True), (4, 5, False), (6, 7, False)):
        for i in range(begin, last + 1):
            most = last + 1 - i - least
            p = delay_probabilities(most, gamma, true_end) / N
            delays = np.asarray(batch.delay)[row == i] - least
            found = np.bincount(delays, minlength=most + 1)
            assert len(found) == most + 1
            statistic += ((found - n * p) ** 2 / (n * p)).sum()
            cells += most + 1
    # Chi-square with cells - 1 degrees of freedom: mean, and standard deviation
    freedom = cells - 1
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)


def test_futures_carry_their_transition():
    data, key = mixed(), jax.random.key(1)
    batch = numpy(draw_futures(key, data, 128, 0.9, 1))
    expected = transitions(jax.random.split(key)[0], data, 128)
    jax.tree.map(np.testing.assert_array_equal, batch.transition, expected)
    one = np.asarray(batch.delay) == 1
    assert one.any()
    np.testing.assert_array_equal(
        batch.future[one], batch.transition.next_observation[one]
    )
    now = numpy(draw_futures(key, data, 128, 0.0, 0))
    assert not now.delay.any()
    np.testing.assert_array_equal(now.future, now.transition.observation)


def test_futures_of_one_row_and_of_members():
    zeros = np.zeros((3, 1), np.float32)
    rows = np.arange(3, dtype=np.float32)[:, None]
    data = from_arrays(rows, zeros, rows[:, 0], rows + 10, np.array([1, 0, 1]) > 0)
    data = data._replace(
        episode_ends=np.arange(1, 4, dtype=np.int32), timeout=np.arange(3) == 1
    )
    data = Dataset(*map(jnp.asarray, data))

    def draw(key, gamma):
        return futures(key, data, 4096, gamma)

    keys = jax.random.split(jax.random.key(0), 2)
    both = numpy(jax.jit(jax.vmap(draw))(keys, jnp.array([0.5, 0.9])))
    for member, gamma in enumerate((0.5, 0.9)):
        row = np.asarray(both.transition.reward[member])
        late = np.asarray(both.delay[member])
        np.testing.assert_array_equal(both.future[member, :, 0], row + 10 * late)
        for i, true_end in enumerate((True, False, True)):
            p = delay_probabilities(1, gamma, true_end)[1]
            assert late[row == i].mean() == pytest.approx(p, abs=0.05)
        alone = jax.jit(draw)(keys[member], gamma)
        np.testing.assert_array_equal(both.delay[member], alone.delay)


def test_wrong_futures_are_one_clear_line():
    for settings, text in (
        ({"discount": 1.0}, "less than 1, got 1.0"),
        ({"discount": 0.9, "least": 2}, "least must be 0 or 1, got 2"),
    ):
        with pytest.raises(ValueError, match=text):
            futures(jax.random.key(0), numbered(), 4, **settings)
