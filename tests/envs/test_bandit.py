from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from jdql.config import DataConfig
from jdql.data.sources import load
from jdql.envs import bandit


def test_four_modes_with_their_rewards():
    data = bandit.dataset()
    assert data["actions"].shape == (10_000, 2)
    assert np.abs(data["actions"]).max() <= 1
    assert not data["observations"].any()
    assert data["terminals"].all()
    for mode in bandit.MODES:
        near = np.linalg.norm(data["actions"] - np.array(mode.centre), axis=1) < 0.4
        assert near.sum() == 2500
        # standard errors: 0.5 / 50 of the mean reward, 0.05 / 50 of the centre
        assert abs(data["rewards"][near].mean() - mode.reward) < 0.05
        assert abs(data["rewards"][near].std() - 0.5) < 0.05
        np.testing.assert_allclose(
            data["actions"][near].mean(0), mode.centre, atol=0.005
        )
        np.testing.assert_allclose(data["actions"][near].std(0), 0.05, atol=0.005)


def test_data_is_fixed_by_its_seed():
    a, b, c = bandit.dataset(40), bandit.dataset(40), bandit.dataset(40, seed=1)
    np.testing.assert_array_equal(a["actions"], b["actions"])
    assert not np.array_equal(a["actions"], c["actions"])
    with pytest.raises(ValueError, match="multiple of 4"):
        bandit.dataset(10)


def test_loads_as_a_config_names_it():
    log: list[str] = []
    source = load(DataConfig(dataset=("jdql.envs.bandit:dataset",)), log=log.append)
    assert source.id == "jdql.envs.bandit:dataset"
    assert source.dataset.size == 10_000
    assert source.dataset.terminal.all()
    assert len(source.dataset.episode_ends) == 10_000
    assert abs(source.data_return[0] - 9.5 / 4) < 0.1
    cloning = load(DataConfig(dataset=("jdql.envs.bandit:cloning",)), log=log.append)
    assert not cloning.dataset.reward.any()


def test_mode_shares():
    corner = [0.8, -0.8]
    near, far = [0.8 - 0.14, -0.8], [0.8 - 0.16, -0.8]
    actions = np.array([corner, near, far, [-0.8, 0.8], [0, 0]])
    np.testing.assert_allclose(bandit.mode_shares(actions), [0.2, 0, 0, 0.4])
    # in two dimensions 1 - exp(-9 / 2) of a Gaussian lies within three deviations
    shares = bandit.mode_shares(bandit.dataset()["actions"])
    np.testing.assert_allclose(shares, 0.25 * (1 - np.exp(-4.5)), atol=0.003)


def test_environment():
    env = gymnasium.make("jdql/Bandit-v0")
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation, [0, 0])
    step = env.step(np.array([0.8, -0.75], np.float32))
    assert step[1:4] == (5.0, True, False)
    env.reset()
    assert env.step(np.zeros(2, np.float32))[1] == 0.0
    env.reset()
    assert env.step(np.array([0.8, 0.8], np.float32))[1] == 1.5
