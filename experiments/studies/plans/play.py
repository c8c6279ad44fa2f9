"""Episodes with all that was seen in them, and many plans from one state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jdql.config import EvalConfig
from jdql.data import observations
from jdql.envs import simulator
from jdql.runtime import distributed
from jdql.runtime.acting import Player
from jdql.runtime.evaluate import start_seed, success_of
from jdql.runtime.recipe import Learned
from jdql.runtime.trained import Trained
from jdql.types import Array, Float, PRNGKeyArray

BETWEEN = 8  # points of a way for each of its steps
# `(observations [E, O], live [E]) -> actions [E, A]`, of E episodes in lock-step
Act = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.floating]]


class Episode(NamedTuple):
    """What happened in T steps.

    Attributes:
      seen: [T + 1, O], the last one being behind the last step.
      reward: [T].
      terminated: whether it ended, and was not cut.
      success: whether the simulator reported one at some step.
    """

    seen: NDArray[np.float32]
    reward: NDArray[np.float64]
    terminated: bool
    success: bool


def policy(
    trained: Trained, episodes: int, config: EvalConfig | None = None
) -> Callable[..., list[Episode]]:
    """`(learned, steps=None) -> episodes`, of the starts that evaluation has.

    Every call plays anew, with the same programs, what it is given as learned.

    Args:
      trained: what acts.
      episodes: E.
      config: the environment; that of the run by default.
    """
    where = config or trained.config.eval
    seeds = [start_seed(where, trained.seed, number) for number in range(episodes)]
    mesh = distributed.member_mesh(1, jax.local_devices()[:1])
    assert trained.acting is not None
    player = Player(trained.acting, [trained.seed], range(episodes), mesh)

    def play(learned: Learned, steps: int | None = None) -> list[Episode]:
        player.start(jax.tree.map(lambda leaf: leaf[None], learned))

        def act(seen: Any, live: Any) -> Any:
            return player(seen[None], live[None])[0]

        return rollout(act, where, seeds, steps)

    return play


def rollout(
    act: Act, config: EvalConfig, seeds: Sequence[int], steps: int | None = None
) -> list[Episode]:
    """Plays one episode from each start, to its end or for so many steps."""
    environments = [simulator.make(config) for _ in seeds]
    try:
        return _rollout(act, environments, seeds, steps, config.env)
    finally:
        for environment in environments:
            environment.close()


def _rollout(
    act: Act,
    environments: Sequence[Any],
    seeds: Sequence[int],
    steps: int | None,
    name: str,
) -> list[Episode]:
    keys = observations.vector_keys(environments[0].observation_space, name)

    def flat(seen: Any) -> NDArray[np.float32]:
        return np.asarray(observations.flatten(seen, keys), np.float32)

    starts = zip(environments, seeds, strict=True)
    seen = [[flat(one.reset(seed=seed)[0])] for one, seed in starts]
    rewards: list[list[float]] = [[] for _ in seeds]
    ended, success, live = np.zeros((3, len(seeds)), bool)
    live[:] = True
    while live.any() and (steps is None or max(map(len, rewards)) < steps):
        actions = act(np.stack([rows[-1] for rows in seen]), live)
        for e in np.flatnonzero(live).tolist():
            after, reward, ended[e], cut, info = environments[e].step(actions[e])
            seen[e].append(flat(after))
            rewards[e].append(float(reward))
            success[e] |= bool(success_of(info))
            live[e] = not (ended[e] or cut)
    rows = zip(seen, rewards, ended.tolist(), success.tolist(), strict=True)
    return [Episode(np.stack(s), np.array(r), end, won) for s, r, end, won in rows]


# Chunks -------------------------------------------------------------------------------


def drawer(trained: Trained, count: int) -> Callable[..., NDArray[np.float32]]:
    """`(seen [C, O], key) -> chunks [N, h, A]`, in the environment's units."""
    acting = trained.acting
    assert acting is not None

    def one(seen: Float[Array, "C O"], key: PRNGKeyArray) -> Float[Array, "h A"]:
        return acting.act(trained.learned, acting.reset(), seen, key)[0]

    many = jax.jit(jax.vmap(one, in_axes=(None, 0)))
    return lambda seen, key: np.asarray(many(seen, jax.random.split(key, count)))


def spread(chunks: NDArray[np.floating]) -> float:
    """How far chunks [N, h, A] lie from the way that their mean takes, in their units.

    The root mean square distance of their actions from its nearest points, whenever it
    comes by: a chunk that goes the same way faster or more slowly is near.
    """
    mean = chunks.mean(0)
    share = np.linspace(0, 1, BETWEEN, endpoint=False)[:, None]
    way = mean[:-1, None] + share * np.diff(mean, axis=0)[:, None]
    points = np.concatenate([way.reshape(-1, mean.shape[-1]), mean[-1:]])
    far = np.linalg.norm(chunks[:, :, None] - points, axis=-1).min(-1)
    return float(np.sqrt(np.mean(far**2)))


def sides(chunks: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which of chunks [N, h, A] lie to one side of their mean, [N].

    Sides are those of the direction in which chunks differ most, their first principal
    component.
    """
    flat = (chunks - chunks.mean(0)).reshape(len(chunks), -1)
    return flat @ np.linalg.svd(flat, full_matrices=False)[2][0] > 0
