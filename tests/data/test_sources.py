from __future__ import annotations

import sys
import types
import warnings

import h5py
import minari as minari_package
import numpy as np
import pytest
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer

from jdql.config import DataConfig
from jdql.data import minari, sources
from jdql.data.sources import load, local_id

WALKER = "mujoco/walker2d/medium-v0"
OWN = "jdql/walker2d/medium-v0"


def create(name: str, reward: float, low: float = -1.0) -> None:
    g = np.random.default_rng(0)
    buffer = EpisodeBuffer(
        id=0,
        observations=g.standard_normal((4, 3)),
        actions=g.uniform(-1, 1, (3, 2)),
        rewards=np.full(3, reward),
        terminations=np.array([False, False, True]),
        truncations=np.zeros(3, bool),
        infos={},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari_package.create_dataset_from_buffers(
            name,
            buffer=[buffer],
            observation_space=Box(-np.inf, np.inf, (3,)),
            action_space=Box(low, 1.0, (2,)),
            data_format="hdf5",
        )


class World:
    """A Minari folder, a server and a collector, and what was asked of them."""

    def __init__(self) -> None:
        self.online = False
        self.on_server: set[str] = set()
        self.log: list[str] = []
        self.collected: list[tuple[str, int]] = []

    def download(self, dataset_id: str) -> None:
        if dataset_id not in self.on_server:
            raise ValueError(f"'{dataset_id}' could not be downloaded: not there")
        create(dataset_id, reward=1.0)

    def collect(self, dataset_id, steps, *, log):
        self.collected.append((dataset_id, steps))
        own = local_id(dataset_id, steps)
        create(own, reward=2.0)
        return own

    def load(self, *dataset, **settings):
        config = DataConfig(dataset=dataset, **settings)
        return load(config, collect=self.collect, log=self.log.append)


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = World()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(minari, "server_answers", lambda: world.online)
    monkeypatch.setattr(minari, "download", world.download)
    return world


def test_a_local_copy_comes_first(world):
    create(WALKER, reward=3.0)
    create(OWN, reward=2.0)
    source = world.load(WALKER)
    assert source.id == WALKER
    assert source.data_return == (9.0, 0.0)
    assert not world.collected
    assert WALKER in world.log[-1]


def test_then_the_server(world):
    world.online, world.on_server = True, {WALKER}
    assert world.load(WALKER).id == WALKER
    assert world.log[0].startswith(f"downloading {WALKER}")


def test_then_jdqls_own_is_collected_and_named(world):
    source = world.load(WALKER)
    assert source.id == OWN
    assert world.collected == [(WALKER, 1_000_000)]
    assert "does not answer" in world.log[0]
    assert OWN in world.log[0]
    assert "not the same data" in world.log[0]
    world.load(WALKER)  # it is there now
    assert len(world.collected) == 1


def test_a_failed_download_says_why(world):
    world.online = True
    assert world.load(WALKER).id == OWN
    assert any("could not be downloaded: not there" in line for line in world.log)


def test_a_smaller_collection_is_not_taken_for_the_full_one(world):
    assert world.load(WALKER, collect_steps=5000).id == "jdql/walker2d/medium-5000-v0"
    assert world.load(WALKER).id == OWN
    assert world.collected == [(WALKER, 5000), (WALKER, 1_000_000)]


def test_source_minari_never_collects(world):
    create(OWN, reward=2.0)
    with pytest.raises(FileNotFoundError, match="source=minari") as caught:
        world.load(WALKER, source="minari")
    assert "\n" not in str(caught.value)
    assert not world.collected


def test_source_local_ignores_minaris(world):
    create(WALKER, reward=3.0)
    world.online = True
    assert world.load(WALKER, source="local").id == OWN


def test_own_ids_need_no_server(world, monkeypatch):
    monkeypatch.setattr(minari, "server_answers", pytest.fail)
    create("jdql/walker2d/medium-s1-v0", reward=5.0)
    assert world.load("jdql/walker2d/medium-s1-v0").data_return[0] == 15.0
    assert world.load(OWN).id == OWN


def test_without_a_collector_the_absence_is_an_error(world):
    config = DataConfig(dataset=(WALKER,), source="local")
    with pytest.raises(FileNotFoundError, match=f"no dataset '{OWN}'"):
        load(config)


def test_several_are_concatenated(world):
    create(WALKER, reward=3.0)
    source = world.load(WALKER, "mujoco/walker2d/expert-v0")
    assert source.id == f"{WALKER}+jdql/walker2d/expert-v0"
    assert source.dataset.reward.tolist() == [3, 3, 3, 2, 2, 2]
    assert source.dataset.episode_ends.tolist() == [3, 6]
    assert source.data_return == (7.5, 1.5)


def test_different_action_spaces_cannot_be_joined(world):
    create(WALKER, reward=3.0)
    create("mujoco/walker2d/wide-v0", reward=3.0, low=-2.0)
    with pytest.raises(ValueError, match="action spaces differ"):
        world.load(WALKER, "mujoco/walker2d/wide-v0")


def test_transform_comes_last(world):
    create(WALKER, reward=1.0)
    source = world.load(WALKER, reward="antmaze")
    assert source.dataset.reward.tolist() == [2, 2, 2]
    assert source.data_return == (3.0, 0.0)


def test_files_by_ending(world, tmp_path):
    arrays = {
        "observations": np.zeros((5, 3), np.float32),
        "actions": np.zeros((5, 2), np.float32),
        "rewards": np.ones(5, np.float32),
        "terminals": np.arange(5) == 4,
        "timeouts": np.zeros(5, bool),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name, value in arrays.items():
            file[name] = value
    assert world.load(str(tmp_path / "a.npz")).dataset.size == 5
    assert world.load(str(tmp_path / "a.hdf5")).dataset.size == 4
    arrays["observations"][1, 2] = np.nan
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(ValueError, match=r"b.npz: observation\[1, 2\] is nan"):
        world.load(str(tmp_path / "b.npz"))


def test_functions(world, monkeypatch):
    module = types.ModuleType("maker_of_data")
    arrays = {
        "observations": np.zeros((2, 3)),
        "actions": np.zeros((2, 2)),
        "rewards": np.ones(2),
        "terminals": np.ones(2, bool),
    }
    vars(module).update(good=lambda: arrays, bad=lambda: 3)
    monkeypatch.setitem(sys.modules, "maker_of_data", module)
    assert world.load("maker_of_data:good").id == "maker_of_data:good"
    with pytest.raises(ValueError, match="returned a int"):
        world.load("maker_of_data:bad")
    with pytest.raises(ValueError, match="has no function 'none'"):
        world.load("maker_of_data:none")
    with pytest.raises(ValueError, match="cannot be imported"):
        world.load("no_such_module_here:f")


@pytest.mark.parametrize(
    ("dataset", "settings", "text"),
    [
        ((), {}, "data.dataset is empty"),
        ((WALKER,), {"source": "remote"}, "auto, minari, local"),
        ((WALKER,), {"reward": "norm"}, "allowed: none, normalize, antmaze"),
        (("walker2d_medium",), {}, "expected a Minari id"),
    ],
)
def test_wrong_settings_are_one_clear_line(world, dataset, settings, text):
    with pytest.raises(ValueError, match=text) as caught:
        world.load(*dataset, **settings)
    assert "\n" not in str(caught.value)


def test_impossible_collections_say_why_on_one_line(world):
    def collect(dataset_id, steps, *, log):
        raise ValueError("no behaviour policy")

    config = DataConfig(dataset=("mujoco/ant/medium-v0",))
    with pytest.raises(ValueError, match="does not answer; no behaviour policy"):
        sources.load(config, collect=collect, log=world.log.append)


def test_local_ids():
    assert local_id(WALKER) == OWN == local_id(OWN)
    assert local_id(WALKER, 500) == "jdql/walker2d/medium-500-v0"
    assert local_id(WALKER, seed=2) == "jdql/walker2d/medium-s2-v0"
    replay = "mujoco/walker2d/medium-replay-v0"
    assert local_id(replay, 500) == "jdql/walker2d/medium-replay-v0"
