from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import minari as minari_package
import numpy as np
import pytest

from jdql.collect import collect as collecting
from jdql.collect import worker
from jdql.collect.collect import ASSETS, BEHAVIOURS, collect
from jdql.collect.episodes import cut, read_replay
from jdql.data import minari

REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("JDQL_SHARED", REPOSITORY.parent / "shared"))
REPLAY = SHARED / "data" / "replay" / "walker2d_medium_replay.npz"
STEPS = 9_000  # two blocks of sixteen Hopper episodes or more


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("minari")


@pytest.fixture(scope="module")
def collected(folder):
    """The same collection by one process and by three."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    made = []
    for processes in (1, 3):
        root = folder / str(processes)
        os.environ["MINARI_DATASETS_PATH"] = str(root)
        log: list[str] = []
        name = collect("mujoco/hopper/medium-v0", STEPS, 0, log.append, processes)
        made.append((name, minari.read(name), log))
    stored = minari_package.load_dataset(made[-1][0])
    if before is None:
        del os.environ["MINARI_DATASETS_PATH"]
    else:
        os.environ["MINARI_DATASETS_PATH"] = before
    return made, stored


def test_number_of_processes_changes_no_bit(collected):
    (_, one, _), (_, three, _) = collected[0]
    assert one.dataset.size == STEPS
    for a, b in zip(one.dataset, three.dataset, strict=True):
        np.testing.assert_array_equal(a, b)


def test_dataset_is_what_its_name_and_metadata_say(collected):
    name, source, log = collected[0][1]
    metadata = collected[1].storage.metadata
    assert name == source.id == f"jdql/hopper/medium-{STEPS}-v0"
    assert metadata["ref_min_score"] == -20.272305
    assert metadata["ref_max_score"] == 3234.3
    assert metadata["algorithm_name"] == "SAC"
    assert "Hopper-v5" in metadata["description"]
    assert "seed 0" in metadata["description"]
    assert gymnasium.__version__ in metadata["description"]
    assert collected[1].recover_environment().spec.id == "Hopper-v5"
    assert "bundled policy hopper_medium (sampled" in log[0]
    # About 1400 in the README of the policies; sixteen episodes and more.
    assert 900 < source.data_return[0] < 2000


def test_transitions_are_the_simulators(collected):
    """Replaying an episode's actions from its seed gives its observations."""
    d = collected[0][0][1].dataset
    env = gymnasium.make("Hopper-v5")
    for number in (0, 17):
        start = d.episode_ends[number - 1] if number else 0
        seeds = np.random.SeedSequence([0, number])
        env.reset(seed=int(seeds.generate_state(1)[0]))
        for row in range(start, start + 20):
            o, r, terminated, _, _ = env.step(d.action[row])
            np.testing.assert_allclose(d.next_observation[row], o, atol=1e-5)
            np.testing.assert_allclose(d.reward[row], r, atol=1e-5)
            assert d.terminal[row] == terminated


def test_an_existing_collection_is_left_alone(folder, collected, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "3"))
    monkeypatch.setattr(collecting, "play", pytest.fail)
    log: list[str] = []
    collect("mujoco/hopper/medium-v0", STEPS, 0, log.append)
    assert "already" in log[0]


def test_another_seed_is_another_dataset(monkeypatch):
    monkeypatch.setattr(worker, "BLOCK", 2)
    envs = [gymnasium.make("Hopper-v5") for _ in range(worker.BLOCK)]
    policy = worker.load_policy(ASSETS / "hopper_medium.npz")
    blocks = [worker.play_block(envs, policy, True, seed, 0) for seed in (0, 1)]
    assert not np.array_equal(blocks[0][0]["actions"][:5], blocks[1][0]["actions"][:5])


def test_a_dead_worker_is_an_error_and_leaves_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    broken = BEHAVIOURS["hopper/medium"]._replace(policy="no_such_policy")
    monkeypatch.setitem(BEHAVIOURS, "hopper/medium", broken)
    with pytest.raises(ValueError, match="worker processes died"):
        collect("mujoco/hopper/medium-v0", 100, processes=2)
    assert "no_such_policy" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_unknown_policies_are_one_clear_line():
    with pytest.raises(ValueError, match="'halfcheetah/expert'") as caught:
        collect("mujoco/halfcheetah/expert-v0")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="at least 1"):
        collect("mujoco/hopper/medium-v0", 0)


@pytest.mark.parametrize("level", sorted(BEHAVIOURS))
def test_every_policy_fits_its_environment(level):
    behaviour = BEHAVIOURS[level]
    env = gymnasium.make(behaviour.env)
    policy = worker.load_policy(ASSETS / f"{behaviour.policy}.npz")
    observation = np.zeros((3, *env.observation_space.shape), np.float32)
    action = worker.act(policy, observation, None)
    assert action.shape == (3, *env.action_space.shape)
    assert action.dtype == np.float32
    assert np.abs(action).max() <= 1


def test_action_by_hand():
    one = np.ones((1, 1), np.float32)
    # hidden relu(2 - 1) = 1 gives mean 0.5 and log std 5, which is clipped to 2
    layers = [(2 * one, -one[0]), (np.array([[0.5, 5.0]]), np.zeros(2))]
    np.testing.assert_allclose(worker.act(layers, one, None), [[np.tanh(0.5)]])
    noise = np.array([[-0.1]])
    expected = np.tanh(0.5 - 0.1 * np.exp(2.0))
    np.testing.assert_allclose(worker.act(layers, one, noise), [[expected]])
    np.testing.assert_allclose(worker.act(layers, -one, noise), [[np.tanh(-0.1)]])


def test_cut_reaches_the_steps_exactly():
    def episode(n, terminated):
        return {
            "observations": np.arange(n + 1.0)[:, None],
            "actions": np.zeros((n, 1)),
            "rewards": np.zeros(n),
            "terminated": np.array(terminated),
        }

    episodes = [episode(5, True), episode(4, True), episode(3, False)]
    kept = cut(episodes, 7)
    assert [len(e["rewards"]) for e in kept] == [5, 2]
    assert kept[0]["terminated"]
    assert not kept[1]["terminated"]
    assert kept[1]["observations"].ravel().tolist() == [0, 1, 2]
    assert cut(episodes, 9)[1]["terminated"]


def test_absent_recordings_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("JDQL_SHARED", str(tmp_path))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="set JDQL_SHARED"):
        collect("mujoco/walker2d/medium-replay-v0")


@pytest.mark.skipif(not REPLAY.is_file(), reason=f"{REPLAY} is not here")
def test_recorded_training_is_stored_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("JDQL_SHARED", str(SHARED))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    log: list[str] = []
    name = collect("mujoco/walker2d/medium-replay-v0", 10, log=log.append)
    assert name == "jdql/walker2d/medium-replay-v0"
    d = minari.read(name).dataset
    episodes = read_replay(REPLAY)
    with np.load(REPLAY) as raw:
        np.testing.assert_array_equal(d.reward, raw["rewards"])
        np.testing.assert_array_equal(d.action, raw["actions"])
        assert d.terminal.sum() == raw["terminated"].sum()
        np.testing.assert_array_equal(d.episode_ends, raw["episode_lengths"].cumsum())
    np.testing.assert_array_equal(
        d.next_observation[d.episode_ends[-1] - 1], episodes[-1]["observations"][-1]
    )


def test_workers_import_no_jax():
    code = (
        "import sys, jdql.collect.worker; "
        "assert 'jax' not in sys.modules and 'gymnasium' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_command_line(tmp_path):
    env = os.environ | {"MINARI_DATASETS_PATH": str(tmp_path)}
    command = [sys.executable, "-m", "experiments.collect"]
    for arguments, text in (
        (["--config=hopper_medum"], "hopper_medium"),
        (["--config=bandit"], "needs no collecting"),
    ):
        done = subprocess.run(
            [*command, *arguments], env=env, cwd=REPOSITORY, capture_output=True
        )
        assert done.returncode == 1
        lines = done.stderr.decode().strip().splitlines()
        assert len(lines) == 1
        assert text in lines[0]
