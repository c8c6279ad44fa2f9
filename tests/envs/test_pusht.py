"""PushT against the authors' recordings, and by hand."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from jdql.config import EvalConfig
from jdql.envs import pusht, simulator


@pytest.fixture(scope="module")
def env():
    pytest.importorskip("gym_pusht", reason="pip install 'jdql[pusht]'")
    made = gymnasium.make(pusht.ENV_ID, disable_env_checker=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def recorded(shared: Path) -> dict[str, np.ndarray]:
    file = shared / "data" / "pusht" / "pusht_lowdim.npz"
    if not file.is_file():
        pytest.skip(f"{file.name} is not in the shared folder")
    with np.load(file) as data:
        return {name: data[name] for name in data.files}


# Keypoints. ---------------------------------------------------------------------------


def test_keypoints_turn_and_move_with_the_block():
    points = np.array([[1.0, 0.0], [0.0, 2.0]])
    moved = pusht.keypoints([[10.0, 20.0, np.pi / 2], [0.0, 0.0, np.pi]], points)
    np.testing.assert_allclose(
        moved, [[[10, 21], [8, 20]], [[-1, 0], [0, -2]]], atol=1e-12
    )
    seen = pusht.observe([7.0, 8.0, 10.0, 20.0, np.pi / 2], points)
    np.testing.assert_allclose(seen, [10, 21, 8, 20, 7, 8], atol=1e-12)
    assert pusht.observe(np.zeros((4, 3, 5))).shape == (4, 3, 20)


def test_keypoints_of_the_states_are_those_recorded(recorded):
    """Where nothing touches the block; else another step of physics lies between.

    Every recorded set of points is one block, in a pose that is at most 0.04 pixels
    from that of the recorded state in 99 of 100 steps.
    """
    state, found = recorded["state"], recorded["keypoint"].astype(np.float64)
    error = np.abs(pusht.keypoints(state[:, 2:]) - found).max(axis=(1, 2))
    touched = recorded["n_contacts"][:, 0] > 0
    assert (~touched).mean() > 0.5
    assert np.quantile(error[~touched], 0.999) < 3e-3
    assert np.median(error) < 3e-5
    assert np.mean(error < 0.01) > 0.9
    assert np.quantile(error, 0.99) < 0.04
    assert error.max() < 2.5
    apart = np.linalg.norm(found[:, :, None] - found[:, None], axis=-1)
    rigid = np.linalg.norm(pusht.NINE[:, None] - pusht.NINE, axis=-1)
    np.testing.assert_allclose(apart, np.broadcast_to(rigid, apart.shape), atol=2e-4)


def test_corners_are_those_of_gym_pusht(env):
    seen, _ = env.reset(seed=3)
    base = env.unwrapped
    state, pose = base.get_obs(), np.array([*base.block.position, base.block.angle])
    theirs = base.get_keypoints(base._block_shapes)
    corners = pusht.KEYPOINTS["corners"]
    np.testing.assert_allclose(pusht.keypoints(pose, corners), theirs, atol=1e-9)
    np.testing.assert_array_equal(seen, pusht.observe(state))
    other = gymnasium.make(
        pusht.ENV_ID, keypoints="corners", disable_env_checker=True
    ).reset(seed=3)[0]
    np.testing.assert_allclose(other, [*theirs.ravel(), *base.agent.position])


# Episodes. ----------------------------------------------------------------------------


@pytest.mark.parametrize("episode", [0, 50, 120, 200])
def test_recorded_actions_replay(env, recorded, episode):
    """Open loop, from the first state to the last, contacts included."""
    ends = recorded["episode_ends"]
    begin, end = ends[episode - 1] if episode else 0, ends[episode]
    states = recorded["state"].astype(np.float64)
    env.reset(seed=0, options={"state": states[begin]})
    errors = []
    for t in range(begin, end - 1):
        seen, *_ = env.step(recorded["action"][t])
        state = env.unwrapped.get_obs()
        errors.append(np.abs(state[:4] - states[t + 1, :4]).max())
        np.testing.assert_array_equal(seen, pusht.observe(state))
    assert max(errors) < 1e-3
    # The demonstrators stopped when the block lay well, not above 0.95 exactly.
    _, reward, *_, info = env.step(recorded["action"][end - 1])
    assert info["coverage"] > 0.85
    assert reward == pytest.approx(min(1.0, info["coverage"] / 0.95))


def test_starts_are_the_authors():
    """NumPy's RandomState(100000), drawn once by hand."""
    state = pusht.start(100_000)
    generator = np.random.RandomState(100_000)
    bounds = [(50, 450), (50, 450), (100, 400), (100, 400)]
    drawn = [generator.randint(*bound) for bound in bounds]
    assert state[:4].tolist() == drawn
    assert state[4] == generator.randn() * 2 * np.pi - np.pi


def test_a_start_sets_the_position_before_the_angle(env):
    """So that the block turns about its centre of gravity, 45 pixels up its stem."""
    x, y, bx, by, angle = pusht.start(100_001)
    seen, _ = env.reset(seed=100_001)
    bx += 45 * np.sin(angle)
    by += 45 * (1 - np.cos(angle))
    expected = pusht.observe([x, y, bx, by, angle])
    np.testing.assert_allclose(seen, expected, atol=1e-6)
    again, _ = env.reset(seed=100_001)
    np.testing.assert_array_equal(seen, again)


def test_an_unseeded_episode_is_another_one(env):
    first, _ = env.reset(seed=5)
    second, third = env.reset()[0], env.reset()[0]
    assert not np.allclose(first, second)
    assert not np.allclose(second, third)


def test_a_block_in_its_goal_ends_the_episode_and_others_are_cut_after_300(env):
    goal = [100.0, 100.0, 256.0, 256.0, np.pi / 4]
    env.reset(seed=0, options={"state": goal})
    seen, reward, terminated, _, info = env.step(np.array([100.0, 100.0]))
    assert reward == 1.0
    assert terminated is True
    assert info["is_success"]
    np.testing.assert_allclose(seen, pusht.observe(goal), atol=1e-3)
    env.reset(seed=100_000)
    for length in range(1, 301):
        _, reward, terminated, truncated, _ = env.step(np.array([20.0, 20.0]))
        assert not terminated
        assert truncated == (length == 300)
    assert 0 <= reward < 0.95


# Wrong settings. ----------------------------------------------------------------------


def test_unknown_points_are_refused():
    with pytest.raises(ValueError, match=r"keypoints must be one of .*'nine'"):
        pusht.make_env(keypoints="ten")


def test_a_missing_package_is_one_line(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("gym_pusht")]:
        monkeypatch.delitem(sys.modules, name)
    plain = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("gym_pusht"):
            raise ModuleNotFoundError("No module named 'gym_pusht'", name="gym_pusht")
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'jdql\[pusht\]'") as error:
        simulator.make(EvalConfig(env=pusht.ENV_ID, env_module="jdql.envs.pusht"))
    assert "\n" not in str(error.value)
