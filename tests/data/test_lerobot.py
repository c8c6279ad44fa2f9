"""LeRobot's format, written here as its versions write it."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from jdql.config import DataConfig
from jdql.data import lerobot
from jdql.data.sources import load

STEPS = 7  # of episodes of 4 and 3 steps
EPISODE = np.array([0, 0, 0, 0, 1, 1, 1])
FRAME = np.array([0, 1, 2, 3, 0, 1, 2])
ROWS = np.arange(STEPS)
ENVIRONMENT = (ROWS[:, None] + 0.1 * np.arange(16)).astype(np.float32)
AGENT = (100 + ROWS[:, None] + np.array([0.0, 0.5])).astype(np.float32)
ACTION = np.stack([10 * ROWS, np.full(STEPS, 3)], axis=1).astype(np.float32)
REWARD = (0.1 * ROWS).astype(np.float32)
# The last two steps of an episode are done there; the first episode is a success.
DONE = np.array([0, 0, 1, 1, 0, 1, 1], bool)
SUCCESS = np.array([0, 1, 1, 1, 0, 0, 0], bool)


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow", reason="pip install 'jdql[lerobot]'")


def table(arrow, rows, **others):
    """Some steps, with vectors of a fixed size as the format has them."""

    def vectors(values):
        kind = arrow.list_(arrow.float32(), values.shape[1])
        return arrow.array(values[rows].tolist(), kind)

    columns = {
        "observation.state": vectors(AGENT),
        "observation.environment_state": vectors(ENVIRONMENT),
        "action": vectors(ACTION),
        "episode_index": EPISODE[rows],
        "frame_index": FRAME[rows],
        "timestamp": (FRAME[rows] / 10).astype(np.float32),
        "next.reward": REWARD[rows],
        "next.done": DONE[rows],
        "next.success": SUCCESS[rows],
        "index": ROWS[rows],
        "task_index": np.zeros(len(rows), int),
        **others,
    }
    return arrow.table({n: c for n, c in columns.items() if c is not None})


def write(folder, name, part):
    from pyarrow import parquet

    path = folder / "data" / "chunk-000" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(part, path)
    (folder / "meta").mkdir(exist_ok=True)
    info = {"codebase_version": "v2.0", "fps": 10, "total_frames": STEPS}
    (folder / "meta" / "info.json").write_text(json.dumps(info))


def quiet(line: str) -> None:
    """What `load` says goes nowhere."""


@pytest.mark.parametrize(
    "files",
    [
        {"episode_000000.parquet": ROWS[:4], "episode_000001.parquet": ROWS[4:]},
        {"file-000.parquet": ROWS},
        {"file-000.parquet": ROWS[::-1]},  # rows are told apart by their columns
    ],
    ids=["file_an_episode", "one_file", "unordered"],
)
def test_every_layout_gives_the_same_episodes(arrow, tmp_path, files):
    for name, rows in files.items():
        write(tmp_path, name, table(arrow, rows))
    source = load(DataConfig(dataset=(str(tmp_path),)), log=quiet)
    data = source.dataset
    assert source.id == str(tmp_path)
    seen = np.concatenate([ENVIRONMENT, AGENT], axis=1)
    np.testing.assert_array_equal(data.observation, seen)
    np.testing.assert_array_equal(data.next_observation, seen[[1, 2, 3, 3, 5, 6, 6]])
    np.testing.assert_array_equal(data.action, ACTION)
    np.testing.assert_array_equal(data.reward, REWARD)
    assert data.episode_ends.tolist() == [4, 7]
    assert np.flatnonzero(data.terminal).tolist() == [3]
    assert np.flatnonzero(data.timeout).tolist() == [6]
    # The bounds are the data's; the second action does not vary.
    assert source.spec.action_low == (0.0, 2.0)
    assert source.spec.action_high == (60.0, 4.0)


def test_rewards_may_be_missing_or_vectors_of_one_number(arrow, tmp_path):
    one = arrow.array([[r] for r in REWARD.tolist()], arrow.list_(arrow.float32()))
    write(tmp_path / "a", "x.parquet", table(arrow, ROWS, **{"next.reward": one}))
    np.testing.assert_array_equal(lerobot.read(tmp_path / "a").dataset.reward, REWARD)
    nothing = dict.fromkeys(("next.reward", "next.success", "observation.state"))
    write(tmp_path / "b", "x.parquet", table(arrow, ROWS, **nothing))
    data = lerobot.read(tmp_path / "b").dataset
    assert not data.reward.any()
    assert not data.terminal.any()
    np.testing.assert_array_equal(data.observation, ENVIRONMENT)


def test_a_missing_column_is_named(arrow, tmp_path):
    write(tmp_path, "x.parquet", table(arrow, ROWS, action=None))
    with pytest.raises(ValueError, match=r"lacks action \(it has observation.state"):
        lerobot.read(tmp_path)
    states = {"observation.state": None, "observation.environment_state": None}
    write(tmp_path, "x.parquet", table(arrow, ROWS, **states))
    with pytest.raises(ValueError, match=r"lacks observation\.environment_state or"):
        lerobot.read(tmp_path)


def test_what_is_no_dataset_gets_one_line(arrow, tmp_path):
    with pytest.raises(FileNotFoundError, match="no dataset in LeRobot's format"):
        lerobot.read(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.parquet").write_text("no table")
    with pytest.raises(ValueError, match="damaged or no parquet file") as error:
        lerobot.read(tmp_path)
    assert "\n" not in str(error.value)


def test_pyarrow_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'jdql\[lerobot\]'"):
        lerobot.read(tmp_path)


# The hub. -----------------------------------------------------------------------------


def test_the_hub_is_asked_for_steps_and_not_for_images(arrow, tmp_path, monkeypatch):
    import huggingface_hub

    write(tmp_path, "x.parquet", table(arrow, ROWS))
    asked = []

    def fetch(repository, **options):
        asked.append((repository, options["repo_type"], options["allow_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    name = "hf://datasets/lerobot/pusht_keypoints"
    source = load(DataConfig(dataset=(name,)), log=quiet)
    assert (source.id, source.dataset.size) == (name, STEPS)
    assert asked == [("lerobot/pusht_keypoints", "dataset", ["data/*", "meta/*"])]


def test_a_hub_out_of_reach_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="cannot be had from the") as error:
        lerobot.locate("hf://datasets/nobody/nothing-of-this-name")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["hf://lerobot/pusht", "hf://datasets/pusht"])
def test_an_address_of_another_kind_is_refused(name):
    with pytest.raises(ValueError, match="must be hf://datasets/OWNER/NAME"):
        load(DataConfig(dataset=(name,)), log=quiet)
