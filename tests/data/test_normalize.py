from __future__ import annotations

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.evaluate import evaluate
from experiments.launch.run_folder import save
from jdql.agents import diffusion_bc, diffusion_ql
from jdql.agents.base import ScaledPolicy, scaled
from jdql.config import Config, DataConfig, EvalConfig, TrainConfig
from jdql.data import normalize, npz
from jdql.data.sources import load
from jdql.runtime import checkpoint, train
from jdql.runtime.metrics import read_rows
from jdql.types import DataSpec

SEEN = np.array([[1.0, 5.0, 100.0], [3.0, 5.0, 100.5], [5.0, 5.0, 101.0]])
STANDARD = DataConfig(standardize=True)
TINY = {"hidden": (8, 8), "batch_size": 4, "diffusion_steps": 2}


def noise() -> dict[str, np.ndarray]:
    """Observations far from mean 0 and deviation 1, in episodes of five."""
    g = np.random.default_rng(0)
    n = 40
    return {
        "observations": g.normal([50, 0, 2], [30, 0.1, 0], (n, 3)),
        "next_observations": g.normal([51, 0, 2], [30, 0.1, 0], (n, 3)),
        "actions": g.uniform(-1, 1, (n, 2)),
        "rewards": g.normal(size=n),
        "terminals": np.zeros(n, bool),
        "timeouts": np.arange(1, n + 1) % 5 == 0,
    }


@pytest.fixture
def data(monkeypatch):
    """The config by which `load` finds `noise`, under this module's own name."""
    monkeypatch.setitem(importlib.sys.modules, "noise_of_a_test", _Module)
    return DataConfig(dataset=("noise_of_a_test:noise",), standardize=True)


class _Module:
    noise = staticmethod(noise)


def quiet(line: str) -> None:
    """Takes the lines of a log."""


def test_statistics_by_hand():
    scaling = normalize.fit(SEEN, STANDARD)
    assert scaling is not None
    np.testing.assert_allclose(scaling.mean, [3, 5, 100.5])
    # divisor N: variance (4 + 0 + 4) / 3; the constant column keeps its scale
    np.testing.assert_allclose(
        scaling.scale, [1 / np.sqrt(8 / 3), 1.0, np.sqrt(6)], rtol=1e-6
    )
    assert scaling.mean.dtype == scaling.scale.dtype == np.float32
    made = scaling(SEEN.astype(np.float32))
    np.testing.assert_allclose(made[:, 0], [-np.sqrt(1.5), 0, np.sqrt(1.5)], rtol=1e-5)
    np.testing.assert_array_equal(made[:, 1], 0)


def test_a_large_constant_is_constant_though_its_float32_values_round():
    g = np.random.default_rng(0)
    column = np.float32(1e6) + g.choice([0, 0.0625], (100, 1)).astype(np.float32)
    scaling = normalize.fit(column, STANDARD)
    assert scaling is not None
    assert scaling.scale.tolist() == [1.0]


def test_ignored_columns_are_0_with_and_without_standardizing():
    both = normalize.fit(SEEN, dataclasses.replace(STANDARD, ignore=(2,)))
    only = normalize.fit(SEEN, DataConfig(ignore=(0,)))
    assert both is not None
    assert only is not None
    np.testing.assert_array_equal(both(SEEN)[:, 2], 0)
    np.testing.assert_allclose(both(SEEN)[:, 0].std(), 1, rtol=1e-6)
    np.testing.assert_array_equal(only(SEEN)[:, 0], 0)
    np.testing.assert_array_equal(only(SEEN)[:, 1:], SEEN[:, 1:])
    with pytest.raises(ValueError, match="column 3, but observations have columns 0"):
        normalize.fit(SEEN, DataConfig(ignore=(3,)))


def test_off_by_default(data):
    assert normalize.fit(SEEN, DataConfig()) is None
    assert normalize.blank(DataConfig(), 3) is None
    off = dataclasses.replace(data, standardize=False)
    source = load(off, log=quiet)
    assert source.scaling is None
    np.testing.assert_array_equal(
        source.dataset.observation, noise()["observations"].astype(np.float32)
    )
    agent = diffusion_bc.make(diffusion_bc.Config(**TINY), source.spec)
    assert scaled(agent, None) is agent


def test_both_observations_are_scaled_by_the_statistics_of_the_first(data):
    raw, source = noise(), load(data, log=quiet)
    mean = raw["observations"].mean(0)
    std = raw["observations"].std(0)
    std[2] = 1.0
    for name, scaled_rows in (
        ("observations", source.dataset.observation),
        ("next_observations", source.dataset.next_observation),
    ):
        expected = (raw[name] - mean) / std
        np.testing.assert_allclose(scaled_rows, expected, rtol=1e-4, atol=1e-4)
    assert source.dataset.observation.dtype == np.float32


@pytest.mark.parametrize("module", [diffusion_bc, diffusion_ql])
def test_acting_on_raw_observations_equals_acting_on_scaled_ones(data, module):
    source = load(data, log=quiet)
    inner = module.make(module.Config(**TINY), source.spec)
    agent = scaled(inner, source.scaling)
    state = agent.init(jax.random.key(0))
    policy = agent.policy(state)
    assert isinstance(policy, ScaledPolicy)
    raw = noise()["observations"].astype(np.float32)
    act, inner_act = jax.jit(agent.act), jax.jit(inner.act)
    for row in (0, 7):
        key = jax.random.key(row)
        action, _ = act(policy, (), jnp.asarray(raw[row]), key)
        expected, _ = inner_act(
            inner.policy(state), (), jnp.asarray(source.dataset.observation[row]), key
        )
        np.testing.assert_array_equal(action, expected)
        unscaled, _ = inner_act(inner.policy(state), (), jnp.asarray(raw[row]), key)
        assert not np.array_equal(action, unscaled)


def test_checkpoints_hold_the_scaling(data, tmp_path):
    source = load(data, log=quiet)
    agent = scaled(
        diffusion_bc.make(diffusion_bc.Config(**TINY), source.spec), source.scaling
    )
    states = jax.vmap(agent.init)(jax.random.split(jax.random.key(0), 2))
    policies = jax.vmap(agent.policy)(states)
    with checkpoint.Checkpoints(tmp_path) as saved:
        saved.save(1, train=states, policy=policies, best=policies, metadata={})
    blank = normalize.blank(data, 3)
    other = scaled(diffusion_bc.make(diffusion_bc.Config(**TINY), source.spec), blank)
    shapes = jax.eval_shape(jax.vmap(lambda s: other.policy(s)), states)
    restored = checkpoint.restore_policy(tmp_path, shapes, member=1)
    assert source.scaling is not None
    np.testing.assert_array_equal(restored.scaling.mean, source.scaling.mean)
    np.testing.assert_array_equal(restored.scaling.scale, source.scaling.scale)


def test_a_run_folder_alone_evaluates_as_training_did(tmp_path):
    """Trained on standardised data; played on the environment's own observations."""
    config = Config(
        name="scaled",
        agent=diffusion_bc.Config(**TINY),
        data=DataConfig(
            dataset=("jdql.envs.safety_halfcheetah:random_play",),
            standardize=True,
            ignore=(0,),
        ),
        train=TrainConfig(steps=4, log_every=2),
        eval=EvalConfig(
            env="jdql/SafetyHalfCheetah-v0",
            env_module="jdql.envs.safety_halfcheetah",
            env_kwargs={"max_episode_steps": 20},
            every=4,
            episodes=1,
        ),
        seeds=2,
    )
    save(config, tmp_path)
    source = load(config.data, log=quiet)
    train.run(config, diffusion_bc.make, source, tmp_path, log=quiet)
    recorded = [row["returns"] for row in read_rows(tmp_path / "evaluations.jsonl")]
    again = [row["returns"] for row in evaluate(config, tmp_path)]
    assert recorded == again


def test_episodes_of_a_slice(data):
    config = dataclasses.replace(data, standardize=False)
    whole = load(config, log=quiet)
    for text, rows in (("0:6", slice(0, 30)), ("6:", slice(30, 40)), (":-7", slice(5))):
        part = load(dataclasses.replace(config, episodes=text), log=quiet)
        for name in ("observation", "action", "reward", "timeout"):
            np.testing.assert_array_equal(
                getattr(part.dataset, name), getattr(whole.dataset, name)[rows]
            )
        assert part.id == f"{whole.id}[{text}]"
        assert part.dataset.episode_ends[-1] == part.dataset.size
        returns = noise()["rewards"][rows].reshape(-1, 5).sum(1)
        kept = returns[:-1] if len(returns) > 1 else returns
        assert part.data_return[0] == pytest.approx(kept.mean(), rel=1e-5)
    for text, what in (
        ("8:", "keeps none of 8"),
        ("3", "FIRST:LAST"),
        ("a:b", "FIRST"),
    ):
        with pytest.raises(ValueError, match=what):
            load(dataclasses.replace(config, episodes=text), log=quiet)


def test_statistics_are_those_of_the_episodes_that_are_kept(data):
    part = load(dataclasses.replace(data, episodes="2:5"), log=quiet)
    assert part.scaling is not None
    expected = noise()["observations"][10:25].mean(0)
    np.testing.assert_allclose(part.scaling.mean, expected, rtol=1e-5)


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


def test_reward_by_the_name_of_a_function(data):
    _Module.halved = staticmethod(lambda d: d._replace(reward=d.reward / 2))
    config = dataclasses.replace(data, reward="noise_of_a_test:halved")
    source = load(config, log=quiet)
    expected = noise()["rewards"].astype(np.float32) / 2
    np.testing.assert_array_equal(source.dataset.reward, expected)
    for wrong, what in (
        ("noise_of_a_test:none", "no function"),
        ("no.such:x", "import"),
    ):
        with pytest.raises(ValueError, match=what):
            load(dataclasses.replace(data, reward=wrong), log=quiet)


def test_spec_is_that_of_the_raw_data(data):
    assert load(data, log=quiet).spec == DataSpec(3, 2, (-1.0, -1.0), (1.0, 1.0))
