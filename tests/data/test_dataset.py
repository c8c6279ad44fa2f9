from __future__ import annotations

import numpy as np
import pytest

from jdql.data import dataset as datasets
from jdql.data.dataset import Dataset


def make(n: int = 6, obs: int = 3, act: int = 2, **changes: object) -> Dataset:
    g = np.random.default_rng(n)
    arrays: dict = {
        "observation": g.standard_normal((n, obs)),
        "action": g.uniform(-1, 1, (n, act)),
        "reward": g.standard_normal(n),
        "next_observation": g.standard_normal((n, obs)),
        "terminal": np.arange(n) == 2,
    }
    return datasets.from_arrays(**{**arrays, **changes})


def test_from_arrays_makes_float32_and_finds_episodes():
    data = make(timeout=np.arange(6) == 3)
    assert data.size == 6
    assert {a.dtype for a in data[:4]} == {np.dtype(np.float32)}
    assert data.episode_ends.tolist() == [3, 4, 6]
    assert data.terminal.tolist() == [0, 0, 1, 0, 0, 0]
    # The recording stops after the last row though the episode has not ended.
    assert data.timeout.tolist() == [0, 0, 0, 1, 0, 1]


def test_a_terminal_is_never_a_timeout_at_the_end_of_an_episode():
    data = make(timeout=np.arange(6) == 2)
    assert data.terminal[2]
    assert not data.timeout[2]


def test_lengths_that_differ_are_named():
    with pytest.raises(ValueError, match=r"differ in length: .*action 6, reward 5"):
        make(reward=np.zeros(5))


def test_empty_dataset():
    with pytest.raises(ValueError, match="empty"):
        make(0)


def test_pixels_are_refused():
    with pytest.raises(ValueError, match="pixels"):
        make(observation=np.zeros((6, 8, 8)))


@pytest.mark.parametrize(
    ("field", "index", "value", "text"),
    [
        ("observation", (4, 1), np.nan, r"observation\[4, 1\] is nan"),
        ("reward", (3,), np.inf, r"reward\[3\] is inf"),
        ("action", (0, 1), -np.inf, r"action\[0, 1\] is -inf"),
        ("next_observation", (5, 2), np.nan, r"next_observation\[5, 2\] is nan"),
    ],
)
def test_values_that_are_not_finite_are_located(field, index, value, text):
    data = make()
    spec = datasets.make_spec(data)
    getattr(data, field)[index] = value
    with pytest.raises(ValueError, match=text) as caught:
        datasets.check(data, spec, name="d")
    assert "\n" not in str(caught.value)


def test_actions_outside_the_space_are_located():
    data = make()
    spec = datasets.make_spec(data, [-1, -2], [1, 2])
    data.action[1, 1] = 1.9
    assert datasets.check(data, spec) is data
    data.action[1, 0] = -1.5
    with pytest.raises(
        ValueError, match=r"action\[1, 0\] is -1.5, outside .*\[-1, 1\]"
    ):
        datasets.check(data, spec)


def test_check_sees_wrong_sizes_and_wrong_ends():
    data = make()
    spec = datasets.make_spec(data)
    with pytest.raises(ValueError, match="the spec"):
        datasets.check(make(act=3), spec)
    with pytest.raises(ValueError, match="episode_ends"):
        datasets.check(data._replace(episode_ends=np.array([3, 5])), spec)
    # Row 2 is terminal: an episode cannot go on behind it, nor end without a mark.
    for ends, row in (([6], 2), ([2, 3, 6], 1)):
        with pytest.raises(ValueError, match=f"transition {row} must be the last"):
            datasets.check(data._replace(episode_ends=np.array(ends)), spec)


def test_a_true_end_ends_an_episode_whatever_the_ends_say():
    data = make(episode_ends=[5, 6])
    assert data.episode_ends.tolist() == [3, 5, 6]
    assert data.timeout.tolist() == [0, 0, 0, 0, 1, 1]
    assert datasets.check(data, datasets.make_spec(data)) is data


def test_bounds_must_be_finite_and_fit():
    with pytest.raises(ValueError, match="finite"):
        datasets.make_spec(make(), -np.inf, np.inf)
    with pytest.raises(ValueError, match="2 dimensions"):
        datasets.make_spec(make(), [-1, -1, -1], 1)


def test_data_return_leaves_out_a_cut_episode():
    data = make(reward=np.array([1.0, 2, 3, 10, 20, 30]))
    np.testing.assert_allclose(datasets.episode_returns(data), [6, 60])
    assert datasets.data_return(data) == (6.0, 0.0)
    whole = make(reward=data.reward, terminal=np.isin(np.arange(6), (2, 5)))
    assert datasets.data_return(whole) == (33.0, 27.0)
