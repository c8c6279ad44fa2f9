from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jdql.data import dataset as datasets
from jdql.data.dataset import Dataset, from_arrays
from jdql.data.episodes import concatenate, hold_out, paid_before, returns_to_go
from jdql.data.sources import load
from tests.data.noise import CONFIG, noise, quiet


def make(n: int = 6, obs: int = 3) -> Dataset:
    """Row 2 is a true end."""
    g = np.random.default_rng(n)
    return from_arrays(
        g.standard_normal((n, obs)),
        g.uniform(-1, 1, (n, 2)),
        np.arange(n),
        g.standard_normal((n, obs)),
        np.arange(n) == 2,
    )


def test_concatenate_shifts_episodes():
    a, b = make(6), make(4)
    both = concatenate([a, b])
    assert both.size == 10
    assert both.episode_ends.tolist() == [3, 6, 9, 10]
    np.testing.assert_array_equal(both.observation[6:], b.observation)
    spec = datasets.make_spec(both)
    assert datasets.check(both, spec) is both
    with pytest.raises(ValueError, match="one observation and one action size"):
        concatenate([a, make(4, obs=5)])


def test_episodes_of_a_slice():
    whole = load(CONFIG, log=quiet)
    for text, rows in (("0:6", slice(0, 30)), ("6:", slice(30, 40)), (":-7", slice(5))):
        part = load(dataclasses.replace(CONFIG, episodes=text), log=quiet)
        for name in ("observation", "action", "reward", "timeout"):
            np.testing.assert_array_equal(
                getattr(part.dataset, name), getattr(whole.dataset, name)[rows]
            )
        assert part.id == f"{whole.id}[{text}]"
        assert part.dataset.episode_ends[-1] == part.dataset.size
        returns = noise()["rewards"][rows].reshape(-1, 5).sum(1)
        kept = returns[:-1] if len(returns) > 1 else returns
        assert part.data_return[0] == pytest.approx(kept.mean(), rel=1e-5)
    for text, what in (
        ("8:", "keeps none of 8"),
        ("3", "FIRST:LAST"),
        ("a:b", "FIRST"),
    ):
        with pytest.raises(ValueError, match=what):
            load(dataclasses.replace(CONFIG, episodes=text), log=quiet)


def test_held_out_episodes_are_the_last_of_those_kept():
    raw = noise()["observations"].astype(np.float32)
    config = dataclasses.replace(CONFIG, episodes="1:6", held_out=2)
    source = load(config, log=quiet)
    assert source.id == "tests.data.noise:noise[1:6][:-2]"
    np.testing.assert_array_equal(source.dataset.observation, raw[5:20])
    assert source.held_out is not None
    np.testing.assert_array_equal(source.held_out.observation, raw[20:30])
    assert source.held_out.episode_ends.tolist() == [5, 10]
    for wrong in (5, 6, -1):
        with pytest.raises(ValueError, match=f"it is {wrong}, and there are 5 ep") as e:
            load(dataclasses.replace(config, held_out=wrong), log=quiet)
        assert "\n" not in str(e.value)


def test_nothing_is_held_out_by_default():
    data = make()
    kept, held_out = hold_out(data, 0)
    assert kept is data
    assert held_out is None


def test_returns_to_go_by_hand():
    """Rewards 0, 1, 2, end, 3, 4, 5, time-out; a discount of 1/2, a penalty of -8."""
    np.testing.assert_allclose(
        returns_to_go(make(), 0.5), [1, 2, 2, 3 + 2 + 1.25, 6.5, 5]
    )
    np.testing.assert_allclose(
        returns_to_go(make(), 0.5, penalty=-8.0), [-1, -2, -6, 6.25, 6.5, 5]
    )
    np.testing.assert_allclose(returns_to_go(make(), 1.0), [3, 3, 2, 12, 9, 5])
    np.testing.assert_allclose(returns_to_go(make(), 0.0), np.arange(6))
    assert returns_to_go(make(), 0.5).dtype == np.float32


def test_returns_to_go_of_episodes_of_one_row():
    reward = np.array([3.0, -1.0, 7.0])
    zeros = np.zeros((3, 1))
    data = from_arrays(zeros, zeros, reward, zeros, np.ones(3, bool))
    np.testing.assert_array_equal(returns_to_go(data, 0.9), reward)


def test_what_follows_the_first_reward_of_an_episode():
    """Episodes of 3, 3 and 4 steps; what is paid in one says nothing of the next."""
    data = concatenate([make(6), make(4)])._replace(
        reward=np.float32([0, 0.1, 0, 0, -1, 0, 1, 0, 0, 0]),
        episode_ends=np.int32([3, 6, 10]),
    )
    assert np.flatnonzero(paid_before(data)).tolist() == [2, 7, 8, 9]
