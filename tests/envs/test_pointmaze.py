"""PointMaze: its geometry by hand, and the simulator's part where it is installed."""

from __future__ import annotations

import importlib.util
import sys

import gymnasium
import numpy as np
import pytest

from experiments.configs.tasks import TASKS
from jdql.config import EvalConfig
from jdql.envs import pointmaze, simulator

UMAZE = pointmaze.MAZES["umaze"]
simulated = pytest.mark.skipif(
    importlib.util.find_spec("gymnasium_robotics") is None,
    reason="gymnasium-robotics is not installed",
)


def make(**kwargs):
    config = EvalConfig(
        env="jdql/PointMaze-umaze-v0",
        env_module="jdql.envs.pointmaze",
        env_kwargs=kwargs,
    )
    return simulator.make(config)


def test_cells_and_positions_by_hand():
    """The U has five rows and columns: its middle cell lies at the origin."""
    cells = np.array([[2, 2], [1, 1], [3, 1], [1, 3]])
    expected = [[0, 0], [-1, 1], [-1, -1], [1, 1]]
    np.testing.assert_array_equal(pointmaze.centre(UMAZE, cells), expected)
    assert pointmaze.cell_at(UMAZE, [-1.4, -0.6]) == (3, 1)
    assert pointmaze.cell_at(UMAZE, [0.49, 0.51]) == (1, 2)
    assert not pointmaze.is_free(UMAZE, [0, 0])  # a wall
    assert not pointmaze.is_free(UMAZE, [7, 0])
    assert pointmaze.is_free(UMAZE, [1.49, 0])
    assert len(pointmaze.free_cells(UMAZE)) == 7


@pytest.mark.parametrize("maze", pointmaze.MAZES)
def test_mazes_are_those_of_the_ants(maze):
    """D4RL has the same maps and the same goals for both."""
    task = next(t for n, t in TASKS.items() if n.startswith(f"antmaze_{maze}"))
    rows = task.env_kwargs["maze_map"]
    mine = pointmaze.MAZES[maze]
    np.testing.assert_array_equal(mine.walls, [[c == 1 for c in row] for row in rows])
    goal = [(i, j) for i, r in enumerate(rows) for j, c in enumerate(r) if c == "g"]
    if maze != "umaze":  # whose ant has its goal at the other end of the same corridor
        assert goal == [mine.goal]
    assert mine.horizon == TASKS[f"pointmaze_{maze}"].horizon


@simulated
def test_an_episode_by_hand():
    environment = make()
    seen, _ = environment.reset(seed=3)
    assert seen.shape == (6,)
    np.testing.assert_array_equal(seen[4:], [-1, 1])
    assert pointmaze.is_free(UMAZE, seen[:2])
    again, _ = environment.reset(seed=3)
    np.testing.assert_array_equal(seen, again)
    rewards, truncated, steps = [], False, 0
    while not truncated:
        # Towards the goal with all force; only its own corridor leads there so.
        seen, reward, terminated, truncated, info = environment.step([-1, 1])
        near = np.linalg.norm(seen[:2] - [-1, 1]) <= 0.5
        assert reward == info["success"] == near
        assert not terminated
        rewards.append(reward)
        steps += 1
    assert steps == 300


@simulated
def test_the_point_stays_out_of_walls_and_is_pushed_by_its_action():
    environment = make(start=(-1.0, -1.0))
    seen, info = environment.reset(seed=0)
    np.testing.assert_array_equal(seen, [-1, -1, 0, 0, -1, 1])
    assert not info["success"]
    pushed = environment.step([0.25, 0.0])[0]
    assert pushed[2] > 0.01
    assert abs(pushed[3]) < 1e-9
    for _ in range(200):
        seen = environment.step([0.0, 1.0])[0]
    assert -0.7 < seen[1] < -0.5  # held by the wall at y = -0.5, its radius being 0.1
    assert seen[0] < 1.5


@simulated
def test_goals_of_ones_own():
    environment = make(goal=(1.2, 0.0), start=(1.0, 0.0))
    assert environment.reset()[1]["success"]
    assert environment.step([0.0, 0.0])[1] == 1.0
    drawn = make(goal="random")
    goals = {tuple(drawn.reset(seed=seed)[0][4:]) for seed in range(40)}
    centres = pointmaze.centre(UMAZE, pointmaze.free_cells(UMAZE))
    assert goals == set(map(tuple, centres))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"goal": (0.0, 0.0)}, r"goal=\(0.0, 0.0\) is not in the maze: .*free cell"),
        ({"goal": (9.0, 0.0)}, "is not in the maze"),
        ({"start": (1.0,)}, "start=.* is not in the maze"),
        ({"maze": "huge"}, "maze must be one of umaze, medium, large"),
    ],
)
def test_mistakes_get_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        make(**changes)
    assert "\n" not in str(error.value)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs.maze.point_maze", None)
    with pytest.raises(ValueError, match=r"pip install 'jdql\[robotics\]'") as error:
        make()
    assert "\n" not in str(error.value)


def test_importing_registers_and_needs_no_simulator():
    for maze, (_, _, horizon) in pointmaze.MAZES.items():
        spec = gymnasium.spec(pointmaze.env_id(maze))
        assert spec.max_episode_steps == horizon
