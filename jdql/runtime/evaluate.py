"""Rollouts in the simulator: S members x E episodes in lock-step.

Every row (a member's episode) has its own Gymnasium environment.  One call a step
computes the actions of all rows that are still running; finished rows are neither
computed nor stepped.  A row's environment seed and its random keys depend on its member
seed and its episode number alone, so it makes no difference which rows run together:
on a CPU the results are equal to the bit to running one episode at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from jdql.agents.base import Agent, Policy
from jdql.config import EvalConfig
from jdql.data import observations
from jdql.envs import simulator
from jdql.runtime import acting, distributed
from jdql.types import DataSpec

SEED_STRIDE = 10_000  # between the environment seeds of consecutive member seeds
STEP_LIMIT = 100_000  # of an episode; nothing that is scored is as long
PACKAGES = ("jdql", "jax", "gymnasium", "mujoco", "gymnasium-robotics")

Progress = Callable[[int, int], None]  # (t, rows still running)


class Evaluation(NamedTuple):
    """What S members did in E episodes each.

    Attributes:
      returns: undiscounted returns in the environment's own reward, (S, E).
      lengths: environment steps, (S, E).
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]


def versions() -> dict[str, str]:
    """Versions of what a result depends on, of those packages that are installed.

    MuJoCo's matters most: trajectories differ between its releases.
    """
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def evaluate(
    agent: Agent,
    policies: Policy,
    seeds: Sequence[int],
    spec: DataSpec,
    config: EvalConfig,
    *,
    episodes: int | Sequence[int] | None = None,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Opens the environments, evaluates once and closes them; see `Rollouts`."""
    with Rollouts(agent, seeds, spec, config, episodes=episodes, mesh=mesh) as rollouts:
        return rollouts(policies, progress=progress)


class Rollouts:
    """Environments held open for the evaluations of a run; a context manager.

    Each evaluation resets them with the same seeds: it does not depend on those before.
    """

    def __init__(
        self,
        agent: Agent,
        seeds: Sequence[int],
        spec: DataSpec,
        config: EvalConfig,
        *,
        episodes: int | Sequence[int] | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        """Makes S x E environments.

        Args:
          agent: whose `reset` and `act` are used.
          seeds: the S member seeds.
          spec: of the data that the policies were trained on.
          config: which environment.
          episodes: E, or the numbers of the episodes; `config.episodes` by default.
          mesh: devices that share the members; by default as many as divide S.

        Raises:
          ValueError: the environment is not installed, is unknown or does not fit the
            policy, or there are no episodes.
        """
        self.seeds = [int(seed) for seed in seeds]
        self.episodes = _episode_numbers(
            config.episodes if episodes is None else episodes
        )
        self._agent, self._config = agent, config
        self._mesh = mesh or distributed.member_mesh(len(self.seeds))
        self._act = acting.batched(agent, self._mesh)
        self._environments: list[list[Any]] = [[] for _ in self.seeds]
        try:
            self._open(spec)
        except BaseException:
            self.close()
            raise

    def _open(self, spec: DataSpec) -> None:
        for member in self._environments:
            for _ in self.episodes:
                member.append(simulator.make(self._config))
        first = self._environments[0][0]
        self._keys = observations.vector_keys(first.observation_space, self._config.env)
        _check(first, self._keys, spec, self._config.env)

    def __call__(
        self, policies: Policy, *, progress: Progress | None = None
    ) -> Evaluation:
        """Runs every episode to its end.

        Args:
          policies: `agent.policy(state)` stacked over the S members.
          progress: called before each step; what it raises ends the evaluation.

        Raises:
          ValueError: a policy gave a non-finite action, or an episode has no end.
        """
        shape = (len(self.seeds), len(self.episodes))
        policies, keys, carries = jax.device_put(
            (
                policies,
                acting.episode_keys(self.seeds, self.episodes),
                acting.stacked(self._agent.reset(), shape),
            ),
            distributed.sharded(self._mesh),
        )
        observation = self._reset()
        returns, lengths = np.zeros(shape), np.zeros(shape, np.int64)
        live = np.ones(shape, bool)
        for t in range(STEP_LIMIT):
            if not live.any():
                return Evaluation(returns, lengths)
            if progress is not None:
                progress(t, int(live.sum()))
            rows = acting.Rows(policies, observation, keys, *_compacted(live))
            output, carries = self._act(rows, carries, np.int32(t))
            actions = np.asarray(output)
            self._check_finite(actions, live, t)
            for s, e in np.argwhere(live):
                environment = self._environments[s][e]
                action = actions[s, e].astype(environment.action_space.dtype)
                seen, reward, terminated, truncated, _ = environment.step(action)
                observation[s, e] = observations.flatten(seen, self._keys)
                returns[s, e] += reward
                lengths[s, e] += 1
                live[s, e] = not (terminated or truncated)
        raise ValueError(
            f"an episode of {self._config.env} is longer than {STEP_LIMIT} steps: "
            "limit it, for instance by eval.env_kwargs={'max_episode_steps': 1000}"
        )

    def _reset(self) -> NDArray[np.float32]:
        """First observations (S, E, O), float32 as in training."""
        first = [
            [
                environment.reset(seed=self._config.seed + seed * SEED_STRIDE + episode)
                for environment, episode in zip(member, self.episodes, strict=True)
            ]
            for member, seed in zip(self._environments, self.seeds, strict=True)
        ]
        flat = [[observations.flatten(o, self._keys) for o, _ in row] for row in first]
        return np.asarray(flat, np.float32)

    def _check_finite(
        self, actions: NDArray[np.floating], live: NDArray[np.bool_], t: int
    ) -> None:
        bad = np.argwhere(live & ~np.isfinite(actions).all(-1))
        if len(bad):
            s, e = bad[0]
            raise ValueError(
                f"the policy of seed {self.seeds[s]} gave the non-finite action "
                f"{actions[s, e].tolist()} at step {t} of episode {self.episodes[e]}"
            )

    def close(self) -> None:
        """Closes the environments."""
        for member in self._environments:
            for environment in member:
                environment.close()
        self._environments = [[] for _ in self.seeds]

    def __enter__(self) -> Rollouts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _compacted(live: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
    """Each member's row numbers, the live ones first (S, E), and how many live (S,)."""
    order = np.argsort(~live, axis=1, kind="stable").astype(np.int32)
    return order, live.sum(axis=1).astype(np.int32)


def _episode_numbers(episodes: int | Sequence[int]) -> list[int]:
    numbers = list(range(episodes) if isinstance(episodes, int) else episodes)
    if not numbers or not all(0 <= number < SEED_STRIDE for number in numbers):
        raise ValueError(f"episodes must be 1 to {SEED_STRIDE}, got {episodes}")
    return numbers


def _check(environment: Any, keys: tuple[str, ...], spec: DataSpec, name: str) -> None:
    from gymnasium.spaces import Box

    space = environment.action_space
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise ValueError(f"{name} has actions of the kind {space}; jdql needs vectors")
    seen = observations.dimension(environment.observation_space, keys)
    sizes = (
        ("observations", seen, spec.observation_dim),
        ("actions", space.shape[0], spec.action_dim),
    )
    for what, has, expected in sizes:
        if has != expected:
            raise ValueError(
                f"{name} has {what} of {has} numbers, but the policy was trained on "
                f"{expected}: evaluate it in its dataset's environment"
            )
