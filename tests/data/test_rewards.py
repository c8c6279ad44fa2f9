from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jdql.data import rewards
from jdql.data.dataset import from_arrays
from jdql.data.sources import load
from tests.data.noise import CONFIG, noise, quiet


def data(reward):
    n = len(reward)
    zeros = np.zeros((n, 1))
    return from_arrays(zeros, zeros, np.array(reward), zeros, np.zeros(n, bool))


def transformed(name: str, dataset):
    return rewards.by_name(name)(dataset, dataset)


def test_none_changes_nothing():
    d = data([1.0, 2.0])
    assert transformed("none", d) is d


def test_normalize_by_hand():
    # mean 2, unbiased variance (1 + 0 + 1) / 2 = 1
    out = transformed("normalize", data([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(out.reward, [-1, 0, 1])
    assert out.reward.dtype == np.float32


def test_antmaze_by_hand():
    out = transformed("antmaze", data([0.0, 1.0]))
    np.testing.assert_array_equal(out.reward, np.float32([-2, 2]))
    assert out.reward.dtype == np.float32


def test_minus_one_by_hand():
    out = transformed("minus_one", data([0.0, 1.0]))
    np.testing.assert_array_equal(out.reward, np.float32([-1, 0]))
    assert out.reward.dtype == np.float32


def test_minmax_by_hand():
    out = transformed("minmax", data([2.0, 3.0, 6.0]))
    np.testing.assert_array_equal(out.reward, np.float32([-1, -0.5, 1]))
    assert out.reward.dtype == np.float32
    with pytest.raises(ValueError, match="range"):
        transformed("minmax", data([1.0, 1.0]))


def test_iql_locomotion_makes_returns_span_a_thousand():
    # returns 3, 5 and 1: the range is 4
    d = data([1.0, 2.0, 5.0, 0.5, 0.5])._replace(episode_ends=np.array([2, 3, 5]))
    out = transformed("iql_locomotion", d)
    np.testing.assert_array_equal(out.reward, np.float32([250, 500, 1250, 125, 125]))
    assert out.reward.dtype == np.float32
    with pytest.raises(ValueError, match="returns are equal"):
        transformed("iql_locomotion", d._replace(reward=np.array([1, 1, 2, 1.5, 0.5])))


def test_equal_rewards_cannot_be_normalized():
    with pytest.raises(ValueError, match="standard deviation"):
        transformed("normalize", data([1.0, 1.0]))


def test_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'normalize'"):
        rewards.by_name("normalise")


def test_statistics_are_those_of_the_training_data():
    held_out, training = data([10.0, 4.0]), data([1.0, 2.0, 3.0])
    for name, expected in (
        ("none", [10, 4]),
        ("normalize", [8, 2]),  # mean 2, standard deviation 1
        ("antmaze", [38, 14]),
        ("minus_one", [9, 3]),
        ("minmax", [8, 2]),  # from 1 to 3
    ):
        out = rewards.by_name(name)(held_out, training)
        np.testing.assert_allclose(out.reward, expected, rtol=1e-6)
    returns = data([1.0, 2.0, 3.0])._replace(episode_ends=np.array([1, 3]))
    out = rewards.by_name("iql_locomotion")(held_out, returns)  # 1 and 5
    np.testing.assert_allclose(out.reward, [2500, 1000])


def test_a_transform_by_the_name_of_a_function():
    config = dataclasses.replace(
        CONFIG, reward="tests.data.noise:beyond_the_best", held_out=2
    )
    source, raw = load(config, log=quiet), noise()["rewards"].astype(np.float32)
    np.testing.assert_array_equal(source.dataset.reward, raw[:30] - raw[:30].max())
    assert source.held_out is not None
    np.testing.assert_array_equal(source.held_out.reward, raw[30:] - raw[:30].max())
    for wrong, what in (
        ("tests.data.noise:none", "no function"),
        ("no.such:x", "import"),
        ("tests.data.noise:of_one", "must take two datasets"),
    ):
        with pytest.raises(ValueError, match=what) as caught:
            load(dataclasses.replace(CONFIG, reward=wrong), log=quiet)
        assert "\n" not in str(caught.value)
