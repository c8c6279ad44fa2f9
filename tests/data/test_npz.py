from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from jdql.config import DataConfig
from jdql.data import npz
from jdql.data.dataset import check
from jdql.data.sources import load
from tests.data.noise import noise, quiet

SHARED = Path(os.environ.get("JDQL_SHARED", Path(__file__).parents[3] / "shared"))
NEORL = SHARED / "data" / "neorl2" / "SafetyHalfCheetah-high-20000-val.npz"


def columns(n: int = 7) -> dict[str, np.ndarray]:
    g = np.random.default_rng(0)
    return {
        "observations": g.standard_normal((n, 3)),
        "actions": g.uniform(-2, 2, (n, 2)),
        "rewards": np.arange(n, dtype=float),
        "terminals": np.arange(n) == 2,
        "timeouts": np.arange(n) == 4,
        "action_low": np.array([-2.0, -2.0]),
        "action_high": np.array([2.0, 2.0]),
    }


def write(path, data):
    np.savez(path, **data)
    return path


def test_own_layout_without_next_observations(tmp_path):
    data = columns()
    source = npz.read(write(tmp_path / "a.npz", data))
    d = source.dataset
    # rows 4 (timed out) and 6 (the last) have no successor; 2 truly ended
    assert d.reward.tolist() == [0, 1, 2, 3, 5]
    assert d.episode_ends.tolist() == [3, 4, 5]
    assert d.terminal.tolist() == [0, 0, 1, 0, 0]
    assert d.timeout.tolist() == [0, 0, 0, 1, 1]
    following = data["observations"][[1, 2, 2, 4, 6]].astype(np.float32)
    np.testing.assert_array_equal(d.next_observation, following)
    assert source.spec.action_high == (2.0, 2.0)


def test_own_layout_with_next_observations_keeps_every_row(tmp_path):
    data = columns()
    data["next_observations"] = data["observations"] + 1
    d = npz.read(write(tmp_path / "a.npz", data)).dataset
    assert d.size == 7
    assert d.episode_ends.tolist() == [3, 5, 7]
    np.testing.assert_allclose(d.next_observation, d.observation + 1, atol=1e-6)


def test_declared_columns(tmp_path):
    names = npz.Columns("s", "a", "r", "end", "cut", "s2")
    data = columns()
    data["next_observations"] = data["observations"]
    renamed = {name: data[field] for field, name in names._asdict().items()} | {
        "action_low": data["action_low"],
        "action_high": data["action_high"],
    }
    path = write(tmp_path / "b.npz", renamed)
    assert npz.read(path, names).dataset.size == 7
    with pytest.raises(ValueError, match="lacks observations"):
        npz.read(path)


def test_errors_are_one_clear_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        npz.read(tmp_path / "none.npz")
    whole = write(tmp_path / "whole.npz", columns(3000))
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:9000])
    with pytest.raises(ValueError, match="damaged") as caught:
        npz.read(cut)
    assert "\n" not in str(caught.value)
    short = columns() | {"rewards": np.zeros(3)}
    with pytest.raises(ValueError, match="rewards 3"):
        npz.read(write(tmp_path / "short.npz", short))
    with pytest.raises(ValueError, match="empty"):
        npz.read(write(tmp_path / "empty.npz", columns(0)))


@pytest.mark.skipif(not NEORL.is_file(), reason=f"{NEORL} is not here")
def test_neorl2_file():
    source = npz.read(NEORL)
    d = check(source.dataset, source.spec)
    with np.load(NEORL) as raw:
        np.testing.assert_array_equal(d.observation, raw["obs"])
        np.testing.assert_array_equal(d.next_observation, raw["next_obs"])
    assert d.episode_ends.tolist() == [1000, 2000]
    assert not d.terminal.any()
    assert np.flatnonzero(d.timeout).tolist() == [999, 1999]


def test_columns_by_name(tmp_path):
    names = {"observations": "s", "actions": "a", "rewards": "r", "terminals": "d"}
    raw = noise()
    np.savez(tmp_path / "a.npz", **{new: raw[old] for old, new in names.items()})
    file = str(tmp_path / "a.npz")
    text = "observations=s, actions=a,rewards=r,terminals=d"
    source = load(DataConfig(dataset=(file,), columns=text), log=quiet)
    assert source.dataset.size == 39  # the last row has no successor
    np.testing.assert_allclose(source.dataset.action, raw["actions"][:39], rtol=1e-6)
    with pytest.raises(ValueError, match="lacks observations"):
        load(DataConfig(dataset=(file,)), log=quiet)
    for wrong in ("obs=s", "observations", "observations="):
        with pytest.raises(ValueError, match=r"data\.columns must be like"):
            npz.columns(wrong)


def test_files_are_found_in_the_shared_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JDQL_SHARED", str(tmp_path))
    name = "neorl2/Task-high-10-train.npz"
    with pytest.raises(FileNotFoundError, match="polixir/neorl2_dataset") as caught:
        load(DataConfig(dataset=(name,)), log=quiet)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "data" / name) in str(caught.value)
    (tmp_path / "data" / "neorl2").mkdir(parents=True)
    np.savez(tmp_path / "data" / name, **noise())
    source = load(DataConfig(dataset=(name,)), log=quiet)
    assert source.id == name
    assert source.dataset.size == 40
