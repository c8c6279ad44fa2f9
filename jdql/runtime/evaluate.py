"""Evaluation in the simulator: S members x E episodes in lock-step.

Every episode of every member has its own Gymnasium environment.  One call a step
computes the actions of all that are still running; finished ones are neither computed
nor stepped.  An episode's environment seed and its random keys depend on its member's
seed and its number alone, so it makes no difference which episodes run together: on a
CPU the results are equal to the bit to playing one episode at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from jdql.agents.base import Acting, Learned
from jdql.checks import one_of
from jdql.config import EvalConfig
from jdql.data import observations
from jdql.envs import simulator
from jdql.references import normalized
from jdql.runtime import distributed, processes
from jdql.runtime.acting import Player
from jdql.runtime.stopping import Stopped
from jdql.types import DataSpec

SEED_STRIDE = 10_000  # between the environment seeds of consecutive member seeds
STEP_LIMIT = 100_000  # of an episode; nothing that is scored is as long
PACKAGES = (
    "jdql",
    "jax",
    "gymnasium",
    "mujoco",
    "gymnasium-robotics",
    "gym-pusht",
    "pymunk",
)

Progress = Callable[[int, int], None]  # (t, episodes still running)


class Evaluation(NamedTuple):
    """What S members did in E episodes each, in the environment's own reward.

    Attributes:
      returns: undiscounted returns, (S, E).
      lengths: environment steps, (S, E).
      peaks: the largest reward of a step, (S, E).
      successes: 1 where the environment reported a success at some step (`success` or
        `is_success` of its info), else 0; NaN where it reports none; (S, E).
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    peaks: NDArray[np.float64]
    successes: NDArray[np.float64]


def scores(result: Evaluation, config: EvalConfig) -> NDArray[np.float64] | None:
    """What the episodes score, (S, E), or None where the task defines no score.

    `config.score` says which quantity counts, and `config.reference` which values of it
    are 0 and 100; a success without a reference counts 100.

    Raises:
      ValueError: there is no such quantity or reference, or the environment reports no
        success though it is to be scored.
    """
    by_name = {
        "return": result.returns,
        "peak": result.peaks,
        "success": result.successes,
    }
    values = one_of("eval.score", config.score, by_name)
    if config.score == "success" and np.isnan(values).any():
        raise ValueError(
            f"eval.score=success, but {config.env} reports none (neither `success` nor "
            "`is_success` is in its info): score its return, eval.score=return"
        )
    if config.reference:
        return normalized(values, config.reference)
    return 100.0 * values if config.score == "success" else None


def versions() -> dict[str, str]:
    """Versions of what a result depends on, of those packages that are installed.

    MuJoCo's matters most: trajectories differ between its releases.
    """
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


class Rollouts:
    """Environments held open for the evaluations of a run; a context manager.

    Each evaluation resets them with the same seeds: it does not depend on those before.
    """

    def __init__(
        self,
        acting: Acting,
        seeds: Sequence[int],
        spec: DataSpec,
        config: EvalConfig,
        *,
        episodes: int | Sequence[int] | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        """Makes S x E environments.

        Args:
          acting: a policy on the environment's scale.
          seeds: the S member seeds.
          spec: of the data that the policies were trained on, on their own scale.
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
        self._config = config
        mesh = mesh or distributed.member_mesh(len(self.seeds))
        self._player = Player(acting, self.seeds, self.episodes, mesh)
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
        self, learned: Learned, *, progress: Progress | None = None
    ) -> Evaluation:
        """Runs every episode to its end.

        Args:
          learned: by the S members, stacked.
          progress: called before each step; what it raises ends the evaluation.

        Raises:
          ValueError: a policy gave a non-finite action, or an episode has no end.
        """
        shape = (len(self.seeds), len(self.episodes))
        result = Evaluation(
            np.zeros(shape),
            np.zeros(shape, np.int64),
            np.full(shape, -np.inf),
            np.full(shape, np.nan),
        )
        self._player.start(learned)
        observation, live = self._reset(), np.ones(shape, bool)
        for t in range(STEP_LIMIT):
            if not live.any():
                return result
            if progress is not None:
                progress(t, int(live.sum()))
            actions = self._player(observation, live)
            self._check_finite(actions, live, t)
            for s, e in np.argwhere(live).tolist():
                self._step(result, observation, live, s, e, actions[s, e])
        raise ValueError(
            f"an episode of {self._config.env} is longer than {STEP_LIMIT} steps: "
            "limit it, for instance by eval.env_kwargs={'max_episode_steps': 1000}"
        )

    def _step(
        self,
        result: Evaluation,
        observation: NDArray[np.float32],
        live: NDArray[np.bool_],
        s: int,
        e: int,
        action: NDArray[np.float32],
    ) -> None:
        """One step of one environment, written into the arrays."""
        environment = self._environments[s][e]
        seen, reward, terminated, truncated, info = environment.step(
            action.astype(environment.action_space.dtype)
        )
        observation[s, e] = observations.flatten(seen, self._keys)
        result.returns[s, e] += reward
        result.lengths[s, e] += 1
        result.peaks[s, e] = max(result.peaks[s, e], reward)
        reported = success_of(info)
        if reported is not None:
            result.successes[s, e] = np.fmax(result.successes[s, e], float(reported))
        live[s, e] = not (terminated or truncated)

    def _reset(self) -> NDArray[np.float32]:
        """First observations (S, E, O), float32 as in training."""
        first = [
            [
                environment.reset(seed=start_seed(self._config, seed, episode))
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


def start_seed(config: EvalConfig, seed: int, episode: int) -> int:
    """The simulator's seed of an episode of the member with a seed."""
    return config.seed + seed * SEED_STRIDE + episode


def success_of(info: dict[str, Any]) -> Any:
    """What a simulator's info says of success; None where it says nothing."""
    return info.get("success", info.get("is_success"))


# (learned, stopping) -> what all members did
Play = Callable[[Learned, Callable[[], bool]], Evaluation]


@contextlib.contextmanager
def open_rollouts(
    acting: Acting,
    seeds: Sequence[int],
    spec: DataSpec,
    config: EvalConfig,
    mesh: Mesh,
) -> Iterator[Play]:
    """Opens the environments of this process's members.

    Args:
      acting: a policy on the environment's scale.
      seeds: of all S members of the run.
      spec: of the data that the policies were trained on, on their own scale.
      config: which environment, and how many episodes.
      mesh: what the members are sharded over.

    Yields:
      A function of what all members have learned, sharded over `mesh`, and of a reader
      of the flag to stop.  In every process it gives the results of all members, or
      raises Stopped when any process is to stop.

    Raises:
      ValueError: the environment cannot be made or does not fit; see `Rollouts`.
    """
    own_seeds = list(seeds)[processes.own_members(len(seeds))]
    own_mesh = processes.own_mesh(mesh)
    rollouts = processes.together(
        lambda: Rollouts(acting, own_seeds, spec, config, mesh=own_mesh)
    )

    def play(learned: Learned, stopping: Callable[[], bool]) -> Evaluation:
        def progress(*_: Any) -> None:
            if stopping():
                raise Stopped

        def play_own() -> Evaluation | None:
            try:
                return rollouts(own, progress=progress)
            except Stopped:
                return None

        own = processes.own_part(learned, mesh)
        result = processes.together(play_own)
        if processes.any_of(result is None):
            raise Stopped
        assert result is not None
        return Evaluation(*map(processes.gather, result))

    with rollouts:
        yield play


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
