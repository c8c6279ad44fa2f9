"""Two routes: by hand, and why a policy of mean actions fails on them."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
import pytest

from jdql.config import DataConfig
from jdql.data.sources import load
from jdql.envs import two_route

UP = np.array([0.0, 1.0], np.float32)


@pytest.fixture
def env():
    return gymnasium.make(two_route.ENV_ID, disable_env_checker=True)


def test_a_step_by_hand():
    assert two_route.move([0.0, -1.0], [0.5, 1.0]) == pytest.approx([0.2, -0.6])
    assert two_route.move([0.0, -1.0], [5.0, -3.0]) == pytest.approx([0.4, -1.4])


@pytest.mark.parametrize(
    ("before", "after", "hit"),
    [
        ([0.0, -0.5], [0.0, -0.41], False),
        ([0.0, -0.45], [0.0, -0.39], True),
        ([-0.5, 0.0], [0.5, 0.0], True),  # across it
        ([-0.1, 0.42], [0.1, 0.42], False),
        ([-0.1, 0.39], [0.1, 0.39], True),  # both ends lie outside, 0.403 away
        ([0.3, 0.3], [0.3, 0.3], False),
        ([0.2, 0.2], [0.2, 0.2], True),
    ],
)
def test_the_whole_way_of_a_step_counts(before, after, hit):
    assert two_route.hits(before, after) is hit


def test_the_guide_by_hand():
    # At the height 0 the route is 0.7 to the side; 0.28 below it, one step away.
    here = np.array([0.5, -0.28])
    assert two_route.guide(here, 1) == pytest.approx([0.5, 0.7])
    assert two_route.guide(here, -1) == pytest.approx([-1.0, 0.7])


def play(env, actions, seed=0):
    """What an episode of these actions gives: length, reward, ends, success."""
    position, _ = env.reset(seed=seed)
    for length, action in enumerate(actions, start=1):
        position, reward, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            return length, reward, terminated, truncated, info["success"], position
    raise AssertionError("the episode goes on")


def test_the_straight_way_hits_the_disc(env):
    length, reward, terminated, _, success, position = play(env, [UP] * 20)
    assert (reward, terminated, success) == (0.0, True, False)
    assert length == 2  # the disc is 0.6 from the start
    assert np.linalg.norm(position) < 0.4


def test_an_episode_is_cut_after_20_steps(env):
    rest = np.zeros(2, np.float32)
    assert play(env, [rest] * 30)[:5] == (20, 0.0, False, True, False)


def test_demonstrations_reach_the_goal_on_both_sides(env):
    log: list[str] = []
    config = DataConfig(dataset=("jdql.envs.two_route:dataset",))
    data = load(config, log=log.append).dataset
    assert len(data.episode_ends) == 1000
    assert data.terminal.sum() == data.reward.sum() == 1000
    assert np.abs(data.action).max() <= 1
    begins = np.concatenate([[0], data.episode_ends[:-1]])
    sides = []
    for begin, end in zip(begins, data.episode_ends, strict=True):
        last = data.next_observation[end - 1 : end]
        path = np.concatenate([data.observation[begin:end], last])
        assert not any(two_route.hits(a, b) for a, b in itertools.pairwise(path))
        sides.append(np.sign(path[np.abs(path[:, 1]).argmin(), 0]))
    assert sum(sides) == 0
    # A demonstration's actions, open loop, succeed from another start.
    actions = data.action[begins[3] : data.episode_ends[3]]
    *_, success, _ = play(env, [*actions, UP, UP], seed=5)
    assert success


def monomials(position, degree: int) -> np.ndarray:
    """All products of powers of x and y up to a degree."""
    x, y = np.asarray(position, np.float64).T
    powers = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
    return np.stack([x**i * y**j for i, j in powers], axis=-1)


@pytest.mark.parametrize("degree", [1, 3, 7])
def test_a_policy_of_least_squares_fails(env, degree):
    """Also one that is flexible: the best polynomial of degree 7 has 36 terms."""
    data = two_route.dataset()
    seen = monomials(data["observations"], degree)
    weights = np.linalg.lstsq(seen, data["actions"], rcond=None)[0]
    successes = []
    for seed in range(50):
        position, done = env.reset(seed=seed)[0], False
        while not done:
            action = monomials(position, degree) @ weights
            position, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
        successes.append(info["success"])
    assert np.mean(successes) < 0.2


def test_data_are_fixed_by_their_seed():
    a, b, c = (two_route.dataset(4, seed)["actions"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert a.shape != c.shape or not np.array_equal(a, c)
