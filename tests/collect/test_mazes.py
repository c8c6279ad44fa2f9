"""The waypoint controller and what it collects."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from jdql import references
from jdql.collect import mazes
from jdql.collect.collect import CONTROLLERS, collect
from jdql.config import DataConfig
from jdql.data import minari, sources
from jdql.envs import pointmaze

UMAZE = pointmaze.MAZES["umaze"]
simulated = pytest.mark.skipif(
    importlib.util.find_spec("gymnasium_robotics") is None,
    reason="gymnasium-robotics is not installed",
)


def test_distances_by_hand():
    w = np.inf
    expected = [
        [w, w, w, w, w],
        [w, 0, 1, 2, w],
        [w, w, w, 3, w],
        [w, 6, 5, 4, w],
        [w, w, w, w, w],
    ]
    np.testing.assert_array_equal(mazes.distances(UMAZE, (1, 1)), expected)


@pytest.mark.parametrize("maze", pointmaze.MAZES.values(), ids=pointmaze.MAZES)
def test_every_free_cell_is_within_reach(maze):
    steps = mazes.distances(maze, maze.goal)
    np.testing.assert_array_equal(np.isfinite(steps), ~maze.walls)


def test_waypoints_by_hand():
    start, target = np.array([-0.9, -1.1]), np.array([1.05, 0.05])
    path = mazes.waypoints(UMAZE, start, target)
    np.testing.assert_allclose(path, [[0, -1], [1, -1], [1.05, 0.05]])
    near = mazes.waypoints(UMAZE, target, target)  # in its cell
    np.testing.assert_allclose(near, [[1.05, 0.05]])


def test_force_by_hand():
    controller = mazes.Controller(UMAZE)
    controller.aim(np.array([-1.0, -1.0]), np.array([1.0, -1.0]))
    # 10 (0 + 0.05) - 0.2 and 10 (-1 + 0.97) + 0.1; the waypoint (0, -1) is so passed.
    force = controller.force(np.array([-0.05, -0.97]), np.array([0.2, -0.1]))
    np.testing.assert_allclose(force, [0.3, -0.2])
    force = controller.force(np.array([0.0, -0.97]), np.array([0.2, -0.1]))
    np.testing.assert_allclose(force, [1.0, -0.2])
    assert not controller.arrived(np.array([0.85, -1.0]))
    assert controller.arrived(np.array([0.95, -1.0]))


def test_a_walk_is_cut_where_it_leaves_the_goal():
    place = np.array([3.0, 0.2, 0.4, 0.6, 0.3, 0.0, 0.9])
    observations = np.zeros((7, 6))
    observations[:, 0] = place
    walk = {
        "observations": observations,
        "actions": np.arange(12.0).reshape(6, 2),
        "rewards": (place[1:] <= 0.5).astype(float),
    }
    episodes = mazes.cut_at_goal(walk)
    assert [len(e["rewards"]) for e in episodes] == [3, 3]
    assert [e["rewards"].tolist() for e in episodes] == [[1, 1, 0], [1, 1, 0]]
    for e, first in zip(episodes, (0, 3), strict=True):
        np.testing.assert_array_equal(e["observations"][:, 0], place[first : first + 4])
        assert e["actions"][0, 0] == 2 * first
        assert not e["terminated"]


@simulated
def test_a_walk_goes_from_target_to_target():
    environment = pointmaze.PointMaze("umaze")
    walk = mazes.walk(environment, np.random.SeedSequence([0, 0]), 1500)
    seen, actions = walk["observations"], walk["actions"]
    again = mazes.walk(environment, np.random.SeedSequence([0, 0]), 1500)
    np.testing.assert_array_equal(actions, again["actions"])
    assert np.abs(actions).max() <= 1
    cells = {pointmaze.cell_at(UMAZE, place) for place in seen[:, :2]}
    assert len(cells) == 7
    # A step is no jump: speeds are about 5 at most, a step takes 0.01 s.
    assert np.abs(np.diff(seen[:, :2], axis=0)).max() < 0.07
    reached = np.linalg.norm(seen[1:, :2] - [-1, 1], axis=1) <= 0.5
    np.testing.assert_array_equal(walk["rewards"], reached)
    assert 0 < reached.mean() < 1
    # Replayed, an action has the recorded effect.
    environment._simulation.point_env.set_state(
        *np.float64(seen[700, :4]).reshape(2, 2)
    )
    np.testing.assert_allclose(environment.step(actions[700])[0], seen[701], atol=1e-4)


@simulated
def test_a_dataset_is_collected_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    entry = DataConfig(
        dataset=("jdql/pointmaze/umaze-v0",), source="local", collect_steps=3000
    )
    log: list[str] = []
    source = sources.load(entry, collect=collect, log=log.append)
    assert source.id == "jdql/pointmaze/umaze-3000-v0"
    data = source.dataset
    assert data.size == 3000
    assert data.observation.shape == (3000, 6)
    assert not data.terminal.any()
    inside = np.linalg.norm(data.next_observation[:, :2] - [-1, 1], axis=1) <= 0.5
    # In float32, so that a point on the circle may fall to either side.
    assert (data.reward == inside).mean() > 0.999
    starts, ends = data.episode_ends[:-1], data.episode_ends[:-1] - 1
    assert (data.reward[ends - 1] == 1).all()  # the last step but one was at the goal
    assert (data.reward[ends] == 0).all()
    assert len(starts) >= 3
    assert source.spec.action_low == (-1.0, -1.0)
    assert "noisy waypoint controller" in log[0]
    assert minari.exists(source.id)
    assert sources.load(entry, collect=None, log=log.append).id == source.id


def test_without_the_package_nothing_is_begun(monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs.maze.point_maze", None)
    with pytest.raises(ValueError, match=r"pip install 'jdql\[robotics\]'"):
        collect("jdql/pointmaze/umaze-v0", 1000)


@simulated
def test_the_controller_scores_a_hundred_and_random_actions_nothing():
    """Twenty episodes of a thousand: within three standard errors of the reference."""
    found = mazes.returns("umaze", 20)
    reference = references.find("pointmaze_umaze")
    for name, expected in (("random", reference.low), ("controller", reference.high)):
        error = found[name].std() / np.sqrt(20)
        assert abs(found[name].mean() - expected) < 3 * error


def test_every_maze_has_a_controller_and_references():
    assert set(CONTROLLERS) == {f"pointmaze/{maze}" for maze in pointmaze.MAZES}
    for maze in pointmaze.MAZES:
        assert references.find(f"pointmaze_{maze}").low >= 0
