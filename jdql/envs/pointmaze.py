"""PointMaze: a force-driven point in a maze, scored as D4RL scores its maze2d tasks.

Importing this module registers `jdql/PointMaze-umaze-v0`, `-medium-v0` and `-large-v0`.
The physics are those of gymnasium-robotics' PointMaze (the extra `robotics`), which are
D4RL's: 0.01 s a step, an action is a force in [-1, 1]^2, speeds are limited to 5 in
each direction.  The mazes are D4RL's too, one unit a cell, but their centre is the
origin.

An observation is a vector of six numbers, x, y, their speeds, and the goal's x and y.
An episode begins at rest but for a little noise in a free cell, has a fixed number of
steps (300, 600 or 800) and never terminates: each step that ends within 0.5 of the goal
is paid 1, any other 0.  The goal is the same in every episode: the centre of one cell.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

RADIUS = 0.5  # of a goal, in cells
START_NOISE = 0.1  # uniform about the centre of a cell; and the deviation of speeds
STATE = 4  # numbers of an observation that are no goal


class Maze(NamedTuple):
    """A map and its task.

    Attributes:
      walls: `[rows, columns]`, true where there is a wall.
      goal: the cell, row and column, of the task's goal.
      horizon: steps of an episode.
    """

    walls: NDArray[np.bool_]
    goal: tuple[int, int]
    horizon: int


def _walls(rows: str) -> NDArray[np.bool_]:
    return np.array([[cell == "#" for cell in row] for row in rows.split()])


_UMAZE = "##### #...# ###.# #...# #####"
_MEDIUM = "######## #..##..# #..#...# ##...### #..#...# #.#..#.# #...#..# ########"
_LARGE = (
    "############ #....#.....# #.##.#.#.#.# #......#...# #.####.###.# "
    "#..#.#.....# ##.#.#.#.### #..#...#...# ############"
)
MAZES = {
    "umaze": Maze(_walls(_UMAZE), (1, 1), 300),
    "medium": Maze(_walls(_MEDIUM), (6, 6), 600),
    "large": Maze(_walls(_LARGE), (7, 9), 800),
}


def env_id(maze: str) -> str:
    """The name that a maze is registered under."""
    return f"jdql/PointMaze-{maze}-v0"


def centre(maze: Maze, cell: Any) -> NDArray[np.float64]:
    """The position x, y of the centre of cells, (row, column) [..., 2]."""
    row, column = np.moveaxis(np.asarray(cell, np.float64), -1, 0)
    rows, columns = maze.walls.shape
    return np.stack([column + 0.5 - columns / 2, rows / 2 - row - 0.5], axis=-1)


def cell_at(maze: Maze, position: Any) -> tuple[int, int]:
    """The cell, row and column, that a position x, y lies in; perhaps outside."""
    x, y = np.asarray(position, np.float64)
    rows, columns = maze.walls.shape
    return int(np.floor(rows / 2 - y)), int(np.floor(x + columns / 2))


def free_cells(maze: Maze) -> NDArray[np.int64]:
    """The cells that are no walls, [N, 2]."""
    return np.argwhere(~maze.walls)


def is_free(maze: Maze, position: Any) -> bool:
    """Whether a position x, y lies inside the maze, in a cell that is no wall."""
    row, column = cell_at(maze, position)
    rows, columns = maze.walls.shape
    inside = 0 <= row < rows and 0 <= column < columns
    return inside and not maze.walls[row, column]


class PointMaze(gymnasium.Env):
    """The environment; see the module's docstring."""

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 100}  # noqa: RUF012

    def __init__(
        self,
        maze: str,
        goal: Any = None,
        start: Any = None,
        render_mode: str | None = None,
    ) -> None:
        """Builds the maze.

        Args:
          maze: a key of `MAZES`.
          goal: its position x, y; "random" draws a free cell for each episode, as the
            Multi2D task of Diffuser's authors; None is the task's.
          start: position x, y at which every episode begins, without noise; None is
            drawn from the free cells.
          render_mode: as Gymnasium's.

        Raises:
          ValueError: there is no such maze, or the goal or the start is not in it.
          ModuleNotFoundError: gymnasium-robotics is not installed.
        """
        if maze not in MAZES:
            raise ValueError(f"maze must be one of {', '.join(MAZES)}, it is {maze!r}")
        self.maze = MAZES[maze]
        self._fixed_goal = self._place("goal", goal) if goal != "random" else None
        self._start = None if start is None else self._place("start", start)
        self._simulation = _simulation(self.maze, render_mode)
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (6,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.goal = centre(self.maze, self.maze.goal)

    def _place(self, name: str, position: Any) -> NDArray[np.float64]:
        """A position of one's own, if it is possible; None is the task's goal."""
        if position is None:
            return centre(self.maze, self.maze.goal)
        point = np.asarray(position, np.float64)
        if point.shape != (2,) or not is_free(self.maze, point):
            rows, columns = self.maze.walls.shape
            raise ValueError(
                f"{name}={position} is not in the maze: give the position x, y of a "
                f"free cell, within {columns / 2 - 1:g} and {rows / 2 - 1:g} of the "
                "origin"
            )
        return point

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Begins an episode."""
        super().reset(seed=seed)
        cells = free_cells(self.maze)
        noise = self.np_random.uniform(-START_NOISE, START_NOISE, 2)
        speed = START_NOISE * self.np_random.standard_normal(2)
        drawn, target = self.np_random.integers(0, len(cells), 2)
        place = centre(self.maze, cells[drawn]) + noise
        if self._start is not None:
            place, speed = self._start, np.zeros(2)
        known = self._fixed_goal
        self.set_goal(centre(self.maze, cells[target]) if known is None else known)
        self._simulation.point_env.set_state(place, speed)
        return self._observe(), {"success": self._at_goal()}

    def set_goal(self, goal: Any) -> None:
        """Moves the goal to another position x, y, of this episode alone."""
        self.goal = np.array(goal, np.float64)
        self._simulation.goal = self.goal
        self._simulation.update_target_site_pos()

    def step(
        self, action: Any
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Pushes the point; paid 1 within 0.5 of the goal."""
        self._simulation.point_env.step(np.asarray(action, np.float64))
        reached = self._at_goal()
        return self._observe(), float(reached), False, False, {"success": reached}

    def _observe(self) -> NDArray[np.float64]:
        data = self._simulation.point_env.data
        return np.concatenate([data.qpos, data.qvel, self.goal])

    def _at_goal(self) -> bool:
        place = self._simulation.point_env.data.qpos
        return bool(np.linalg.norm(place - self.goal) <= RADIUS)

    def render(self) -> Any:
        """A picture of the maze, the point and the goal."""
        return self._simulation.render()

    def close(self) -> None:
        """Frees the simulation."""
        self._simulation.close()


def _simulation(maze: Maze, render_mode: str | None) -> Any:
    """gymnasium-robotics' environment of a map."""
    from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

    rows = [[int(wall) for wall in row] for row in maze.walls]
    made = PointMazeEnv(maze_map=rows, render_mode=render_mode)
    with contextlib.suppress(OSError):  # its model is read, and it never removes it
        os.remove(made.tmp_xml_file_path)
    return made


for _name, _maze in MAZES.items():
    if env_id(_name) not in gymnasium.registry:
        gymnasium.register(
            env_id(_name),
            entry_point=f"{__name__}:PointMaze",
            max_episode_steps=_maze.horizon,
            kwargs={"maze": _name},
        )
