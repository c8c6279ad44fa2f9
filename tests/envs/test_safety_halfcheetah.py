from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np
import pytest

from jdql import references
from jdql.envs import safety_halfcheetah

STRIDE = 37  # a prime: every phase of the gait is met


@pytest.fixture(scope="module")
def env():
    made = gymnasium.make(safety_halfcheetah.ENV_ID, disable_env_checker=True)
    yield made
    made.close()


@pytest.mark.parametrize("part", ["100000-train", "20000-val"])
def test_recorded_transitions_replay(env, shared: Path, part):
    file = shared / "data" / "neorl2" / f"SafetyHalfCheetah-high-{part}.npz"
    if not file.is_file():
        pytest.skip(f"{file.name} is not in the shared folder")
    with np.load(file) as data:
        recorded = {name: data[name] for name in data.files}
    steps = range(0, len(recorded["reward"]), STRIDE)
    errors, reward_errors = [], []
    for i in steps:
        env.reset(seed=0)
        state = recorded["obs"][i].astype(np.float64)
        env.unwrapped.set_state(state[:9], state[9:])
        seen, reward, *_ = env.step(recorded["action"][i])
        errors.append(np.abs(seen - recorded["next_obs"][i]).max())
        reward_errors.append(abs(reward - recorded["reward"][i].item()))
    # The states were rounded to float32, which a contact may magnify.
    assert np.median(errors) < 5e-5
    assert np.quantile(errors, 0.99) < 1e-2
    assert np.median(reward_errors) < 5e-5
    assert np.quantile(reward_errors, 0.99) < 2e-3


def step_at(env, speed: float):
    env.reset(seed=0)
    velocity = np.zeros(9)
    velocity[0] = speed
    height = np.zeros(9)
    height[1] = 2.0  # in the air nothing brakes it
    env.unwrapped.set_state(height, velocity)
    return env.step(np.full(6, 0.5, np.float32))


def test_reward_below_and_above_the_limit(env):
    for speed in (-4.0, 1.0, 2.5):
        seen, reward, terminated, _, info = step_at(env, speed)
        moved = seen[0] / 0.05
        assert reward == pytest.approx(moved - 0.1 * 6 * 0.25, abs=1e-6)
        assert not terminated
        assert not info["too_fast"]
    _, reward, terminated, _, info = step_at(env, 3.5)
    assert info["x_velocity"] > 3.2096
    assert reward == -100.0
    assert info["too_fast"]
    assert not terminated


def test_whole_state_is_seen_and_an_episode_has_1000_steps(env):
    observation, _ = env.reset(seed=3)
    assert env.observation_space.shape == observation.shape == (18,)
    inner = env.unwrapped.data
    np.testing.assert_array_equal(observation, np.concatenate([inner.qpos, inner.qvel]))
    again, _ = env.reset(seed=3)
    np.testing.assert_array_equal(observation, again)
    length, truncated = 0, False
    while not truncated:
        *_, terminated, truncated, _ = env.step(np.zeros(6, np.float32))
        length += 1
        assert not terminated
    assert length == 1000


def test_random_play_is_a_fixed_dataset():
    a, b = (safety_halfcheetah.random_play(120) for _ in range(2))
    np.testing.assert_array_equal(a["observations"], b["observations"])
    assert a["observations"].shape == a["next_observations"].shape == (120, 18)
    assert np.flatnonzero(a["timeouts"]).tolist() == [99]
    np.testing.assert_array_equal(a["next_observations"][:99], a["observations"][1:100])
    speed = (a["next_observations"][:, 0] - a["observations"][:, 0]) / 0.05
    cost = 0.1 * np.square(a["actions"]).sum(1)
    np.testing.assert_allclose(a["rewards"], speed - cost, atol=1e-5)


class Rows(NamedTuple):
    observation: np.ndarray
    next_observation: np.ndarray
    reward: np.ndarray


def test_caution_prices_the_fastest_steps():
    speed = np.arange(1.0, 22.0)  # 21 steps: the 95 % quantile is the 20th speed, 20
    before = np.zeros((21, 18))
    after = before + 0.05 * speed[:, None]
    rows = Rows(before, after, speed.astype(np.float32))
    priced = safety_halfcheetah.cautious(rows, rows)
    np.testing.assert_allclose(priced.reward[:20], speed[:20])
    assert priced.reward[20] == pytest.approx(21 - 10 * (21 - 20), rel=1e-5)
    assert priced.reward.dtype == np.float32
    np.testing.assert_array_equal(priced.observation, before)
    slow = Rows(before[:2], after[:2], rows.reward[:2])  # its fastest: 1.95 m/s
    priced = safety_halfcheetah.cautious(rows, slow)
    np.testing.assert_allclose(priced.reward[5], 6 - 10 * (6 - 1.95), rtol=1e-5)


def test_score_is_the_benchmarks_own():
    # NeoRL-2's table: mean return of the data, and of its best published policy
    assert references.normalized(1769.308, "safety_halfcheetah") == pytest.approx(
        73.5594, abs=1e-3
    )
    assert references.normalized(1702.9, "safety_halfcheetah") == pytest.approx(
        71.18, abs=5e-3
    )
