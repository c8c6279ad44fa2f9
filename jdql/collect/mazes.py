r"""The waypoint controller of the mazes, and the data that it collects.

    python -m jdql.collect.mazes --maze=umaze --episodes=2000

measures the returns that score 0 and 100 in jdql/references.py.

As D4RL collected maze2d, the controller goes to the centre of one cell after another on
a shortest path to a target, a spot in some free cell, and draws a new target whenever
it has arrived.  Its force is 10 (waypoint - x) - v, here plus noise of deviation 0.5,
within [-1, 1].  A waypoint is passed at a distance of 0.1.

The data are paid for the task's goal, not for these targets, and cut into episodes as
Diffuser's authors cut theirs: an episode ends, as if by a time-out, where the point
leaves the goal's radius, and the next one begins there.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from jdql.envs import pointmaze
from jdql.envs.pointmaze import Maze

GAIN = 10.0  # of the distance to a waypoint; that of the speed is -1
ARRIVED = 0.1  # a waypoint is passed at this distance
NOISE = 0.5  # deviation of the collecting controller's noise
PATIENCE = 1_000  # steps to a target before another one is drawn
BLOCK_STEPS = 5_000  # of a block, one walk that is never reset

Episode = dict[str, np.ndarray]
Action = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def distances(maze: Maze, target: tuple[int, int]) -> NDArray[np.float64]:
    """Steps from cell to cell to a target, for every cell; infinite in walls."""
    steps = np.full(maze.walls.shape, np.inf)
    steps[target] = 0
    edge = [target]
    for cell in edge:  # which grows: a breadth-first search
        for near in neighbours(cell):
            if not maze.walls[near] and np.isinf(steps[near]):
                steps[near] = steps[cell] + 1
                edge.append(near)
    return steps


def neighbours(cell: tuple[int, int]) -> list[tuple[int, int]]:
    """The four cells beside one; every maze is closed, so they exist."""
    row, column = cell
    return [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]


def waypoints(
    maze: Maze, start: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The centres of the cells on a shortest path, and the target at its end, [n, 2].

    The cell of the start is none of them, and the target stands for its own cell.
    """
    steps = distances(maze, pointmaze.cell_at(maze, target))
    cell, path = pointmaze.cell_at(maze, start), []
    while steps[cell] > 1:
        cell = min(neighbours(cell), key=lambda near: steps[near])
        path.append(pointmaze.centre(maze, cell))
    return np.array([*path, target])


class Controller:
    """Follows the waypoints to a target; the only memory is how far it has come."""

    def __init__(self, maze: Maze) -> None:
        """A controller without a target; see `aim`."""
        self._maze = maze

    def aim(self, place: NDArray[np.float64], target: NDArray[np.float64]) -> None:
        """Plans the way from a place to a target."""
        self._path = waypoints(self._maze, place, target)
        self._next = 0

    def arrived(self, place: NDArray[np.float64]) -> bool:
        """Whether the target is within reach."""
        return bool(np.linalg.norm(self._path[-1] - place) < ARRIVED)

    def force(
        self, place: NDArray[np.float64], speed: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """10 (waypoint - x) - v, in [-1, 1]; counts the waypoint if it is passed."""
        ahead = self._path[self._next] - place
        if np.linalg.norm(ahead) < ARRIVED and self._next < len(self._path) - 1:
            self._next += 1
        return np.clip(GAIN * ahead - speed, -1.0, 1.0)


def player(env: str) -> Callable[[int, int], list[Episode]]:
    """The `(seed, block) -> episodes` of `jdql.collect.worker` for a maze's data."""
    maze = env.removeprefix("jdql/PointMaze-").rpartition("-v")[0]
    simulator = pointmaze.PointMaze(maze)
    return lambda seed, block: cut_at_goal(
        walk(simulator, np.random.SeedSequence([seed, block]), BLOCK_STEPS)
    )


def walk(
    env: pointmaze.PointMaze, seeds: np.random.SeedSequence, steps: int
) -> Episode:
    """A walk from target to target.

    Returns:
      `observations` [steps + 1, 6], `actions` [steps, 2], `rewards` [steps], float32.
    """
    observation, _ = env.reset(seed=int(seeds.generate_state(1)[0]))
    generator = np.random.default_rng(seeds.spawn(1)[0])
    controller, since = Controller(env.maze), PATIENCE
    observations, actions = np.zeros((steps + 1, 6)), np.zeros((steps, 2), np.float32)
    rewards, observations[0] = np.zeros(steps, np.float32), observation
    for t in range(steps):
        place, speed = observation[:2], observation[2:4]
        if since == PATIENCE or controller.arrived(place):
            controller.aim(place, random_target(env.maze, generator))
            since = 0
        noise = NOISE * generator.standard_normal(2)
        actions[t] = np.clip(controller.force(place, speed) + noise, -1.0, 1.0)
        observation, rewards[t], *_ = env.step(actions[t])
        observations[t + 1] = observation
        since += 1
    return {
        "observations": observations.astype(np.float32),
        "actions": actions,
        "rewards": rewards,
    }


def random_target(maze: Maze, generator: np.random.Generator) -> NDArray[np.float64]:
    """A spot near the centre of some free cell, as starts are drawn."""
    cells = pointmaze.free_cells(maze)
    noise = generator.uniform(-pointmaze.START_NOISE, pointmaze.START_NOISE, 2)
    return pointmaze.centre(maze, cells[generator.integers(len(cells))]) + noise


def cut_at_goal(walk: Episode) -> list[Episode]:
    """The episodes of a walk: each ends where the point leaves the goal's radius."""
    inside = np.linalg.norm(
        walk["observations"][:, :2] - walk["observations"][:, 4:6], axis=1
    )
    at_goal = inside <= pointmaze.RADIUS
    steps = len(walk["rewards"])
    ends = np.flatnonzero(at_goal[:-1] & ~at_goal[1:]) + 1
    bounds = np.unique([0, *ends, steps])
    return [
        {
            "observations": walk["observations"][start : end + 1],
            "actions": walk["actions"][start:end],
            "rewards": walk["rewards"][start:end],
            "terminated": np.array(False),
        }
        for start, end in itertools.pairwise(bounds)
    ]


def require(env: str) -> None:
    """Refuses to begin where the simulator is not installed.

    Raises:
      ValueError: what to install.
    """
    from jdql.config import EvalConfig
    from jdql.envs import simulator

    simulator.make(EvalConfig(env=env, env_module="jdql.envs.pointmaze")).close()


def returns(maze: str, episodes: int, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Returns [episodes] of random actions and of the controller without noise.

    Both play the episodes that an evaluation plays: the same starts, the task's goal.
    """
    env, generator = pointmaze.PointMaze(maze), np.random.default_rng(seed)
    controller = Controller(env.maze)

    def random(observation: NDArray[np.float64]) -> NDArray[np.float64]:
        return generator.uniform(-1.0, 1.0, 2)

    def controlled(observation: NDArray[np.float64]) -> NDArray[np.float64]:
        return controller.force(observation[:2], observation[2:4])

    def one(number: int, act: Action) -> float:
        observation, _ = env.reset(seed=seed + number)
        controller.aim(observation[:2], env.goal)
        total = 0.0
        for _ in range(env.maze.horizon):
            observation, reward, *_ = env.step(act(observation))
            total += reward
        return total

    policies = {"random": random, "controller": controlled}
    return {
        name: np.array([one(number, act) for number in range(episodes)])
        for name, act in policies.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maze", required=True, choices=sorted(pointmaze.MAZES))
    parser.add_argument("--episodes", type=int, default=2_000)
    args = parser.parse_args(argv)
    for name, values in returns(args.maze, args.episodes).items():
        error = values.std() / np.sqrt(len(values))
        print(f"{args.maze} {name}: {values.mean():.2f} (standard error {error:.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
