"""Episodes in memory, and a Minari dataset made of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from jdql.data import minari
from jdql.references import Reference

# observations [T + 1, O], actions [T, A], rewards [T] and terminated (a scalar)
Episode = dict[str, np.ndarray]


def cut(episodes: list[Episode], steps: int) -> list[Episode]:
    """The first `steps` transitions; the episode that reaches them is shortened.

    A shortened episode keeps the observation after its last action and has no true end.
    """
    kept: list[Episode] = []
    room = steps
    for episode in episodes:
        if room == 0:
            break
        if len(episode["rewards"]) > room:
            episode = {
                "observations": episode["observations"][: room + 1],
                "actions": episode["actions"][:room],
                "rewards": episode["rewards"][:room],
                "terminated": np.array(False),
            }
        kept.append(episode)
        room -= len(episode["rewards"])
    return kept


def read_replay(path: Path) -> list[Episode]:
    """The episodes of a recorded training (per episode, T + 1 observations)."""
    with np.load(path) as file:
        data = {name: file[name] for name in file.files}
    lengths = data["episode_lengths"]
    row_ends = np.cumsum(lengths + 1)
    step_ends = np.cumsum(lengths)
    return [
        {
            "observations": data["observations"][row_end - n - 1 : row_end],
            "actions": data["actions"][step_end - n : step_end],
            "rewards": data["rewards"][step_end - n : step_end],
            "terminated": np.array(terminated),
        }
        for n, row_end, step_end, terminated in zip(
            lengths, row_ends, step_ends, data["terminated"], strict=True
        )
    ]


def _buffer(number: int, episode: Episode) -> Any:
    from minari.data_collector import EpisodeBuffer

    length = len(episode["rewards"])
    at_end = np.arange(length) == length - 1
    return EpisodeBuffer(
        id=number,
        observations=episode["observations"],
        actions=episode["actions"],
        rewards=episode["rewards"],
        terminations=at_end & bool(episode["terminated"]),
        truncations=at_end & (not episode["terminated"]),
        infos={},
    )


def store(
    dataset_id: str,
    episodes: list[Episode],
    env: str,
    reference: Reference,
    how: str,
    algorithm: str = "SAC",
) -> None:
    """Writes a Minari dataset (HDF5), which appears whole or not at all.

    Args:
      dataset_id: Its id; the caller has seen that it is free.
      episodes: At least one.
      env: Gymnasium id, from which the dataset can make its environment again.
      reference: The returns that score 0 and 100.
      how: A sentence for the description.
      algorithm: What the behaviour was made by.
    """
    import gymnasium
    import minari as minari_package
    import mujoco

    returns = [float(e["rewards"].sum(dtype=np.float64)) for e in episodes]
    if len(returns) > 1 and not episodes[-1]["terminated"]:
        returns.pop()  # it may have been cut
    description = (
        f"Collected by jdql in {env}, not the data of D4RL or of Minari. {how} "
        f"Return of whole episodes {np.mean(returns):.1f} +- {np.std(returns):.1f}. "
        f"Gymnasium {gymnasium.__version__}, MuJoCo {mujoco.__version__}."
    )
    made = gymnasium.make(env)
    box = made.observation_space
    if not isinstance(box, gymnasium.spaces.Box):
        raise ValueError(f"{env} has observations of the kind {box}, not vectors")
    low, high = box.low.astype(np.float32), box.high.astype(np.float32)
    with minari.staging(dataset_id), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # Minari asks for an e-mail address
        minari_package.create_dataset_from_buffers(
            dataset_id,
            buffer=[_buffer(i, episode) for i, episode in enumerate(episodes)],
            env=env,
            observation_space=gymnasium.spaces.Box(low, high, dtype=np.float32),
            action_space=made.action_space,
            algorithm_name=algorithm,
            author="jdql",
            ref_min_score=reference.low,
            ref_max_score=reference.high,
            description=description,
            data_format="hdf5",
        )
    made.close()
