from __future__ import annotations

import json
import time
import warnings

import minari as minari_package
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from minari.data_collector import EpisodeBuffer

from jdql.data import minari

VECTOR = Box(-np.inf, np.inf, (3,))
ACTION = Box(-1.0, 1.0, (2,))


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def episode(i, n, terminated, observe=None, action=None):
    g = np.random.default_rng(i)
    last = np.arange(n) == n - 1
    return EpisodeBuffer(
        id=i,
        observations=observe(g, n + 1) if observe else g.standard_normal((n + 1, 3)),
        actions=action(g, n) if action else g.uniform(-1, 1, (n, 2)),
        rewards=g.standard_normal(n),
        terminations=last & terminated,
        truncations=last & (not terminated),
        infos={"x": g.standard_normal(n + 1)},
    )


def create(name="mujoco/toy/medium-v0", space=VECTOR, actions=ACTION, **kw):
    episodes = [episode(0, 4, True, **kw), episode(1, 3, False, **kw)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari_package.create_dataset_from_buffers(
            name,
            buffer=episodes,
            observation_space=space,
            action_space=actions,
            data_format="hdf5",
        )
    return episodes


def test_reads_every_transition():
    first, second = create()
    source = minari.read("mujoco/toy/medium-v0")
    d = source.dataset
    assert source.id == "mujoco/toy/medium-v0"
    assert d.size == 7
    assert d.observation.dtype == np.float32
    assert d.episode_ends.tolist() == [4, 7]
    assert np.flatnonzero(d.terminal).tolist() == [3]
    assert np.flatnonzero(d.timeout).tolist() == [6]
    # The observation after a time-out is its own, not the next episode's first.
    np.testing.assert_array_equal(
        d.next_observation[4:], second.observations[1:].astype(np.float32)
    )
    np.testing.assert_array_equal(
        d.observation[:4], first.observations[:-1].astype(np.float32)
    )
    assert source.spec.action_low == (-1.0, -1.0)


def test_reading_agrees_with_minaris_own_iterator():
    create()
    d = minari.read("mujoco/toy/medium-v0").dataset
    stored = minari_package.load_dataset("mujoco/toy/medium-v0")
    actions = np.concatenate([e.actions for e in stored.iterate_episodes()])
    np.testing.assert_array_equal(d.action, actions.astype(np.float32))


def test_goal_dictionaries_become_one_vector():
    space = Dict(
        {
            "observation": VECTOR,
            "achieved_goal": Box(-9, 9, (2,)),
            "desired_goal": Box(-9, 9, (2,)),
        }
    )

    def observe(g, n):
        return {k: g.uniform(-1, 1, (n, *s.shape)) for k, s in space.spaces.items()}

    first, _ = create(space=space, observe=observe)
    d = minari.read("mujoco/toy/medium-v0").dataset
    o = first.observations
    expected = np.concatenate(
        [o["achieved_goal"], o["observation"], o["desired_goal"]], 1
    )
    np.testing.assert_allclose(d.observation[:4], expected[:-1], rtol=1e-6)
    assert d.observation.shape == (7, 7)


def test_nested_goals_are_left_out():
    """As in the kitchen: its goals are dictionaries, its observation is a vector."""
    goal = Dict({"kettle": Box(-9, 9, (7,))})
    space = Dict({"observation": VECTOR, "achieved_goal": goal, "desired_goal": goal})

    def observe(g, n):
        goals = {"kettle": g.uniform(-1, 1, (n, 7))}
        return {
            "observation": g.standard_normal((n, 3)),
            "achieved_goal": goals,
            "desired_goal": goals,
        }

    create(space=space, observe=observe)
    assert minari.read("mujoco/toy/medium-v0").dataset.observation.shape == (7, 3)


def one_line(match, name="mujoco/toy/medium-v0", kind=ValueError):
    with pytest.raises(kind, match=match) as caught:
        minari.read(name)
    assert "\n" not in str(caught.value)


def test_discrete_actions_are_refused():
    create(actions=Discrete(3), action=lambda g, n: g.integers(0, 3, n))
    one_line("continuous actions")


def test_pixels_are_refused():
    create(
        space=Box(0, 255, (8, 8, 3), np.uint8),
        observe=lambda g, n: g.integers(0, 255, (n, 8, 8, 3)).astype(np.uint8),
    )
    one_line("pixel observations")


def test_dictionaries_without_observation_are_refused():
    space = Dict({"camera": Box(0, 1, (4,))})
    create(space=space, observe=lambda g, n: {"camera": g.random((n, 4))})
    one_line("dictionary observations with the keys camera")


def test_absent_id_names_the_nearest():
    create()
    one_line(
        "nearest local ids: mujoco/toy/medium-v0",
        "mujoco/toy/medum-v0",
        FileNotFoundError,
    )


def test_damaged_files_are_named(root):
    create()
    folder = root / "mujoco/toy/medium-v0/data"
    file = folder / "main_data.hdf5"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    one_line("is damaged")
    file.write_bytes(whole)
    assert minari.read("mujoco/toy/medium-v0").dataset.size == 7
    metadata = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps(metadata | {"total_steps": 9}))
    one_line("promise 9 transitions, its file has 7")
    (folder / "metadata.json").write_text('{"total')
    one_line("is damaged")


def test_staging_publishes_whole_datasets_only(root):
    def interrupted():
        with minari.staging("jdql/toy/medium-v0"):
            create("jdql/toy/medium-v0")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert minari.local_ids() == []
    assert list(root.iterdir()) == []
    with minari.staging("jdql/toy/medium-v0"):
        create("jdql/toy/medium-v0")
        assert not (root / "jdql").exists()
    assert minari.local_ids() == ["jdql/toy/medium-v0"]
    assert list(minari_package.list_local_datasets()) == ["jdql/toy/medium-v0"]
    assert [p.name for p in root.iterdir()] == ["jdql"]


def test_probe_is_short_and_obeys_offline(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert not minari.server_answers(1.0)
    monkeypatch.setattr(minari, "_responds", lambda url, seconds: time.sleep(5) or True)
    start = time.monotonic()
    assert not minari.server_answers(0.2)
    assert time.monotonic() - start < 2
    monkeypatch.setattr(minari, "_responds", lambda url, seconds: True)
    assert minari.server_answers()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not minari.server_answers()


def test_ids():
    assert minari.is_id("mujoco/walker2d/medium-v0")
    assert not minari.is_id("walker2d_medium")
    assert not minari.is_id("../walker2d/medium-v0")
