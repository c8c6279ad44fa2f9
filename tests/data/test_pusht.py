"""The demonstrations of PushT, and which of them the authors train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jdql.config import DataConfig
from jdql.data import pusht
from jdql.data.sources import load
from tests.data.recordings import recorded


def recording() -> dict[str, np.ndarray]:
    """Episodes of two and three steps."""
    g = np.random.default_rng(0)
    return {
        "action": g.integers(0, 512, (5, 2)).astype(np.float32),
        "keypoint": g.uniform(0, 512, (5, 9, 2)).astype(np.float32),
        "state": g.uniform(0, 512, (5, 5)).astype(np.float32),
        "episode_ends": np.array([2, 5]),
    }


def quiet(line: str) -> None:
    """What `load` says goes nowhere."""


def test_a_recording_is_read_by_its_columns(tmp_path):
    arrays = recording()
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    source = load(DataConfig(dataset=(str(path),)), log=quiet)
    data = source.dataset
    assert source.id == str(path)
    points = arrays["keypoint"].reshape(5, 18)
    np.testing.assert_array_equal(data.observation[:, :18], points)
    np.testing.assert_array_equal(data.observation[:, 18:], arrays["state"][:, :2])
    np.testing.assert_array_equal(data.action, arrays["action"])
    following = data.observation[[1, 1, 3, 4, 4]]
    np.testing.assert_array_equal(data.next_observation, following)
    assert data.episode_ends.tolist() == [2, 5]
    assert data.timeout.tolist() == [False, True, False, False, True]
    assert not data.terminal.any()
    assert not data.reward.any()
    assert source.spec.action_high == (512.0, 512.0)


@pytest.mark.parametrize("file", recorded("dp_windows"))
def test_the_split_is_the_authors(file):
    r = np.load(file)
    names = {name.rpartition("/")[0] for name in r if name.startswith("split/")}
    assert names
    for name in names:
        parts = dict(
            (part[: len(key)], part[len(key) :])
            for part in name.partition("/")[2].split("_")
            for key in ("n", "ratio", "seed", "max")
            if part.startswith(key)
        )
        most = None if parts["max"] == "None" else int(parts["max"])
        settings = int(parts["n"]), float(parts["ratio"]), most, int(parts["seed"])
        held_out, chosen = pusht.split(*settings)
        np.testing.assert_array_equal(held_out, r[f"{name}/val"])
        np.testing.assert_array_equal(chosen, r[f"{name}/train"])


def test_training_data_are_90_of_206_demonstrations(shared: Path):
    file = shared / "data" / pusht.FILE
    if not file.is_file():
        pytest.skip(f"{file.name} is not in the shared folder")
    whole = load(DataConfig(dataset=(str(file),)), log=quiet).dataset
    assert (whole.size, len(whole.episode_ends)) == (25_650, 206)
    part = load(DataConfig(dataset=("jdql.data.pusht:training",)), log=quiet).dataset
    assert len(part.episode_ends) == 90
    _, chosen = pusht.split(206)
    numbers = np.flatnonzero(chosen)
    begins = np.concatenate([[0], whole.episode_ends[:-1]])
    for i in (0, 1, 89):
        begin, end = begins[numbers[i]], whole.episode_ends[numbers[i]]
        first = 0 if i == 0 else part.episode_ends[i - 1]
        kept = slice(first, part.episode_ends[i])
        np.testing.assert_array_equal(part.action[kept], whole.action[begin:end])
        np.testing.assert_array_equal(
            part.observation[kept], whole.observation[begin:end]
        )
