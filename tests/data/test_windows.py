from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.data import windows as layout
from jdql.data.dataset import Dataset, from_arrays
from jdql.data.sampling import window_rows, windows
from jdql.data.windows import counts, drop, locate, repeat, require, rows, zero

draw = jax.jit(windows, static_argnums=(2, 3, 4, 5, 6, 7))
draw_rows = jax.jit(window_rows, static_argnums=(2, 3, 4, 5))

# Four steps with a true end, one with a true end, three with a time-out, two cut.
ENDS = jnp.array([4, 5, 8, 10], jnp.int32)
BOUNDS = ((0, 4), (4, 5), (5, 8), (8, 10))


def numbered() -> Dataset:
    """Transition i holds 100 + i; what follows it is 100 + i + 1 in its episode."""
    i = np.arange(10, dtype=np.float32)
    value = 100 + i[:, None]
    data = from_arrays(value, -value, i + 1, value + 1, (i == 3) | (i == 4), i == 7)
    assert data.episode_ends.tolist() == ENDS.tolist()
    return Dataset(*map(jnp.asarray, data))


def enumerated(length: int, before: int, after: int) -> list[tuple[int, int]]:
    """Episode and first step of every window, by trying all starts."""
    found = []
    for episode, (begin, end) in enumerate(BOUNDS):
        for start in range(-30, 30):
            left = max(0, -start)
            right = max(0, start + length - (end - begin))
            if left <= before and right <= after and left + right <= 2 * length:
                found.append((episode, start))
    return found


SIZES = ((1, 0, 0), (2, 0, 0), (3, 1, 2), (3, 2, 0), (4, 3, 3), (6, 2, 1))


@jax.jit
def every():
    """Episode and start of more numbers of windows than there are, for each size."""
    return [locate(jnp.arange(50), counts(ENDS, *size), size[1]) for size in SIZES]


def test_all_windows_are_found():
    for size, found in zip(SIZES, every(), strict=True):
        expected = enumerated(*size)
        assert require(ENDS, *size) == len(expected)
        episode, start = (column[: len(expected)].tolist() for column in found)
        assert list(zip(episode, start, strict=True)) == expected


def test_all_windows_are_drawn_equally_often():
    length, before, after = 4, 3, 2
    expected = enumerated(length, before, after)
    total = len(expected)
    drawn = draw_rows(jax.random.key(0), ENDS, 2000 * total, length, before, after)
    both = np.concatenate([drawn.row, drawn.valid], axis=1)
    seen, frequency = np.unique(both, axis=0, return_counts=True)
    # Rows and marks together tell the windows of this dataset apart.
    made = rows(ENDS, *map(jnp.array, zip(*expected, strict=True)), length)
    there = np.unique(np.concatenate([made.row, made.valid], axis=1), axis=0)
    assert len(there) == total
    np.testing.assert_array_equal(seen, there)
    # Each 2,000 times, standard deviation 44
    assert np.abs(frequency - 2000).max() < 180


def test_padding_by_hand():
    """Windows of four, up to three steps beyond either side."""
    data = numbered()
    cases = {
        # (episode, start): rows, valid, mask, row of the next observation
        (0, 0): ([0, 1, 2, 3], [1, 1, 1, 1], [1, 1, 1, 0], 3),
        (0, 2): ([2, 3, 3, 3], [1, 1, 0, 0], [1, 0, 0, 0], 3),
        (0, -2): ([0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1], 1),
        (1, -2): ([4, 4, 4, 4], [0, 0, 1, 0], [1, 1, 0, 0], 4),
        (1, 0): ([4, 4, 4, 4], [1, 0, 0, 0], [0, 0, 0, 0], 4),
        (2, 1): ([6, 7, 7, 7], [1, 1, 0, 0], [1, 1, 1, 1], 7),  # a time-out
        (3, -1): ([8, 8, 9, 9], [0, 1, 1, 0], [1, 1, 1, 1], 9),  # both sides
    }
    episode, start = (jnp.array(column) for column in zip(*cases, strict=True))

    @jax.jit
    def cut():
        window = layout.take(data, rows(ENDS, episode, start, 4))
        return window, zero(observation=jnp.array([7.0]), action=-5.0)(window)

    window, zeroed = jax.tree.map(np.asarray, cut())
    for b, (row, valid, mask, last) in enumerate(cases.values()):
        row, valid = np.array(row), np.array(valid)
        np.testing.assert_array_equal(window.observation[b, :, 0], 100 + row)
        np.testing.assert_array_equal(window.action[b, :, 0], -100 - row)
        np.testing.assert_array_equal(window.reward[b], (row + 1) * valid)
        np.testing.assert_array_equal(window.valid[b], valid)
        np.testing.assert_array_equal(window.mask[b], mask)
        assert window.next_observation[b, 0] == 100 + last + 1
        for made, value, fill in (
            (zeroed.observation, 100 + row, 7),
            (zeroed.action, -100 - row, -5),
        ):
            np.testing.assert_array_equal(made[b, :, 0], np.where(valid, value, fill))
    assert repeat(window) is drop(window) is window
    np.testing.assert_array_equal(zeroed.reward, window.reward)


def test_a_stride_takes_every_second_step():
    data = numbered()
    # A span of three steps: two whole windows in the first episode, one in the third.
    each = counts(ENDS, 2, stride=2)
    assert each.tolist() == [2, 0, 1, 0]
    window = draw(jax.random.key(0), data, 64, 2, 0, 0, drop, 2)
    window = jax.tree.map(np.asarray, window)
    first = window.observation[:, 0, 0]
    assert set(first.tolist()) == {100, 101, 105}
    np.testing.assert_array_equal(window.observation[:, 1, 0], first + 2)
    np.testing.assert_array_equal(window.next_observation[:, 0], first + 3)
    np.testing.assert_array_equal(window.mask[:, 1], first != 101)
    # Beyond the end the episode's last step stands, whether it is on the stride or not.
    assert counts(ENDS, 2, after=2, stride=2).tolist() == [4, 1, 3, 2]
    row, valid = rows(ENDS, jnp.array([0, 2]), jnp.array([3, 0]), 3, 2)
    assert row.tolist() == [[3, 3, 3], [5, 7, 7]]
    assert valid.tolist() == [[1, 0, 0], [1, 1, 0]]


def test_labels_follow_the_rows():
    """What `windows` draws and what labels are taken at are the same for one key."""
    data, key = numbered(), jax.random.key(3)
    window = draw(key, data, 32, 3, 1, 2, repeat)
    at = draw_rows(key, data.episode_ends, 32, 3, 1, 2)
    np.testing.assert_array_equal(window.observation[..., 0], 100 + np.asarray(at.row))
    np.testing.assert_array_equal(window.valid, at.valid)


@pytest.mark.parametrize("ends", [[7], [1, 2, 3, 4, 5, 6, 7], [1, 7]])
def test_single_episodes_and_episodes_of_one_row(ends):
    i = np.arange(7, dtype=np.float32)
    data = from_arrays(i[:, None], i[:, None], i, i[:, None] + 1, i < 0, None, ends)
    data = Dataset(*map(jnp.asarray, data))
    window = draw(jax.random.key(0), data, 512, 3, 0, 2, repeat)
    first = np.asarray(window.observation[:, 0, 0], int)
    assert set(first) == set(range(7))
    end = np.array(ends)[np.searchsorted(ends, first, side="right")]
    expected = np.minimum(first[:, None] + np.arange(3), end[:, None] - 1)
    np.testing.assert_array_equal(window.observation[..., 0], expected)
    np.testing.assert_array_equal(
        window.valid, first[:, None] + np.arange(3) < end[:, None]
    )


def test_members_draw_what_they_draw_alone():
    data = numbered()

    def batch(key):
        return windows(key, data, 4, 3, 1, 2, zero())

    @jax.jit
    @jax.vmap
    def several(key):
        return jax.lax.scan(lambda c, k: (c, batch(k)), 0, jax.random.split(key, 3))[1]

    keys = jax.random.split(jax.random.key(2), 2)
    together = several(keys)
    alone = jax.jit(batch)(jax.random.split(keys[1], 3)[2])
    jax.tree.map(
        lambda many, one: np.testing.assert_array_equal(many[1, 2], one),
        together,
        alone,
    )


def test_wrong_sizes_are_one_clear_line():
    data, key = numbered(), jax.random.key(0)
    for call, text in (
        (lambda: windows(key, data, 4, 0), "at least 1 step"),
        (lambda: windows(key, data, 4, 3, 3, 0, repeat), "padded by 0 to 2 of them"),
        (lambda: windows(key, data, 4, 3, 0, -1, repeat), "got before=0, after=-1"),
        (lambda: windows(key, data, 4, 3, 1, 0, repeat, 2), "needs before=0, it is 1"),
        (lambda: windows(key, data, 4, 3, 0, 1), "padding=drop keeps whole windows"),
        (lambda: require(ENDS, 5), "longest has 4 transitions"),
    ):
        with pytest.raises(ValueError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)
