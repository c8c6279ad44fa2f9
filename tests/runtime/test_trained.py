"""What a run folder gives back, what a later run is given, systems that do not act."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdql
from experiments import evaluate, run
from jdql.agents import cep, diffusion_bc
from jdql.agents.base import Acting
from jdql.config import Config, DataConfig, EvalConfig, TrainConfig
from jdql.data import sources
from jdql.runtime import checkpoint, recipe, stored, train, trained
from jdql.runtime.acting import episode_keys
from jdql.runtime.metrics import read_rows

SCALED = DataConfig(
    dataset=("jdql.envs.synthetic:hopper",),
    scale_observations="gaussian",
    scale_actions="limits",
)
BEHAVIOUR = Config(
    name="behaviour",
    agent=diffusion_bc.Config().tiny(),
    data=SCALED,
    train=TrainConfig(steps=4, log_every=2, call=2),
    eval=EvalConfig(
        env="jdql/Synthetic-v0",
        env_module="jdql.envs.synthetic",
        env_kwargs={"task": "hopper", "max_episode_steps": 3},
        every=2,
        episodes=2,
    ),
    seeds=3,
)
SOURCE = sources.load(SCALED, log=lambda line: None)


def go(config: Config, folder: Path, **options):
    stored.save(config, folder)
    return train.run(config, SOURCE, folder, log=lambda line: None, **options)


@pytest.fixture(scope="module")
def behaviour(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("behaviour")
    assert go(BEHAVIOUR, folder) == (4, True)
    return folder


def energy(behaviour: Path, **changes) -> Config:
    agent = dataclasses.replace(cep.Config().tiny(), support=3, batch_size=4)
    config = dataclasses.replace(
        BEHAVIOUR, name="energy", agent=agent, given={"behaviour": str(behaviour)}
    )
    return dataclasses.replace(config, **{"seed": 1, "seeds": 2, **changes})


# The door -----------------------------------------------------------------------------


def test_acting_is_on_the_environments_scale(behaviour):
    """As by hand: scale what is seen, plan, undo the scale of the actions."""
    policy = jdql.load(behaviour, seed=1)
    run = trained.open_run(behaviour)
    learned = jax.tree.map(lambda leaf: leaf[1], trained.restore(run))
    agent = recipe.agent(run.recipe, learned.settings, learned.given)
    seen = np.linspace(-2, 3, 11, dtype=np.float32)
    keys = episode_keys([1], range(3))[0]
    scaled = jnp.asarray(SOURCE.scaling.observation.forward(seen))

    def by_hand(key):
        key = jax.random.fold_in(key, 0)
        planned, _ = agent.acting.act(learned.own, (), scaled[None], key)
        return SOURCE.scaling.action.inverse(planned)[0]

    expected = np.stack([by_hand(key) for key in keys])
    np.testing.assert_allclose(policy.act(seen), expected[0], rtol=1e-4, atol=1e-5)
    policy.reset()
    batch = policy.act(np.stack([seen] * 3))
    np.testing.assert_allclose(batch, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected).max() <= 1
    assert expected.std(axis=0).min() > 1e-3
    # Later steps and other episodes have other noise.
    assert not np.array_equal(policy.act(np.stack([seen] * 3)), batch)
    policy.reset(episode=2)
    np.testing.assert_allclose(policy.act(seen), expected[2], rtol=1e-4, atol=1e-5)


def test_a_policy_knows_its_run(behaviour):
    policy = jdql.load(behaviour, "best", seed=2)
    rows = policy.evaluations()
    best = max(rows, key=lambda row: row["return_mean"])
    assert (policy.seed, policy.step) == (2, best["step"])
    assert {row["seed"] for row in policy.metrics()} == {2}
    assert policy.config.name == "behaviour"
    assert policy.spec == SOURCE.spec
    assert jdql.load(behaviour).seed == 0


def test_a_policy_acts_with_other_settings(behaviour):
    plain = jdql.load(behaviour)
    other = jdql.load(behaviour, sampler="ddim", sample_steps=2)
    seen = np.zeros(11)
    assert not np.allclose(plain.act(seen), other.act(seen))
    chex.assert_trees_all_equal(plain.learned.own, other.learned.own)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: jdql.load(f, seed=7), r"no seed 7: its seeds are \[0, 1, 2\]"),
        (lambda f: jdql.load(f, 3), "step 3 was not kept"),
        (lambda f: jdql.load(f, smpler="ddim"), "no setting 'smpler'"),
        (lambda f: jdql.load(f, sampler="dim"), "sampler must be one of"),
        (lambda f: jdql.load(f / "nowhere"), "holds no run"),
        (lambda f: jdql.load(f).act(np.zeros(5)), "an observation has 11 numbers"),
    ],
)
def test_mistakes_get_one_line(behaviour, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(behaviour)
    assert "\n" not in str(error.value)


def test_a_batch_keeps_its_size_until_reset(behaviour):
    policy = jdql.load(behaviour)
    policy.act(np.zeros((2, 11)))
    with pytest.raises(ValueError, match=r"3 observations, but there were 2"):
        policy.act(np.zeros((3, 11)))
    policy.reset()
    assert policy.act(np.zeros((3, 11))).shape == (3, 3)


def test_plans_that_are_followed_stay_on_the_systems_scale(behaviour):
    """What is followed, and what is seen then, are scaled; the action is scaled back.

    A rule in the environment's units finds the maps in its spec.
    """
    run = trained.open_run(behaviour)
    learned = jax.tree.map(lambda leaf: leaf[0], trained.restore(run))

    def make(config, spec, given):
        def act(learned, carry, observations, key):
            return 2 * observations[:, :4] + 9.0, carry

        def follow(learned, row, observation):
            speed = spec.scaling.observation.inverse(observation)[3]
            return jnp.array([row[3] - observation[3], speed, 0.25])

        actor = Acting(act, follow=follow)
        return run.recipe.make(config, spec, given)._replace(acting=actor)

    policy = recipe.acting(run.recipe._replace(make=make))
    seen = np.linspace(-2, 3, 11, dtype=np.float32)
    scaled = SOURCE.scaling.observation.forward(seen)
    rows, _ = policy.act(learned, (), jnp.asarray(seen)[None], jax.random.key(0))
    np.testing.assert_allclose(rows, 2 * scaled[None, :4] + 9, rtol=1e-5)
    action = policy.follow(learned, rows[0], jnp.asarray(seen))
    own = np.array([scaled[3] + 9, seen[3], 0.25])
    expected = SOURCE.scaling.action.inverse(own)
    np.testing.assert_allclose(action, expected, rtol=1e-4, atol=1e-5)


# Stages -------------------------------------------------------------------------------


def test_a_later_run_has_what_the_earlier_one_learned_by_seed(behaviour, tmp_path):
    earlier = trained.restore(trained.open_run(behaviour))
    copy = tmp_path / "copy"
    shutil.copytree(behaviour, copy)
    config = energy(copy)
    folder, other = tmp_path / "energy", tmp_path / "broken"
    assert go(config, folder) == (4, True)
    half = dataclasses.replace(config, train=TrainConfig(steps=2, log_every=2, call=2))
    assert go(half, other) == (2, True)
    shutil.rmtree(copy)  # the later run needs it no more
    assert go(config, other, resume=True) == (4, True)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (folder / name).read_text() == (other / name).read_text()
    given = trained.restore(trained.open_run(folder)).given["behaviour"]
    expected = jax.tree.map(lambda leaf: leaf[1:], earlier)  # of seeds 1 and 2
    chex.assert_trees_all_equal(given, expected)
    rows = evaluate.evaluate(stored.load(folder), folder)
    recorded = read_rows(folder / "evaluations.jsonl")[-2:]
    assert [row["returns"] for row in rows] == [row["returns"] for row in recorded]
    assert jdql.load(folder, seed=2).act(np.zeros(11)).shape == (3,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"given": {}}, r"give --config.given.behaviour=FOLDER"),
        ({"given": {"behavior": "x"}}, "given behaviour, nothing else"),
        ({"given": {"behaviour": "nowhere"}}, "there is no run there"),
        ({"seed": 2}, r"no member with seed 3.*seeds are \[0, 1, 2\]"),
        (
            {"agent": diffusion_bc.Config().tiny()},
            "this system is given none, nothing else",
        ),
    ],
)
def test_what_is_not_given_is_one_line(behaviour, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        go(energy(behaviour, **changes), tmp_path / "r")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "r" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v["train"].update(steps=9), "unfinished, at update 4 of 9"),
        (lambda v: v["sweep"].append(["agent.lr", [0.1, 0.2]]), "2 members with seed"),
    ],
)
def test_a_run_that_does_not_fit_is_one_line(behaviour, tmp_path, edit, message):
    copy = tmp_path / "copy"
    shutil.copytree(behaviour, copy)
    values = json.loads((copy / "config.json").read_text())
    edit(values)
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        go(energy(copy), tmp_path / "r")


def test_other_data_do_not_fit(behaviour, tmp_path):
    other = dataclasses.replace(SCALED, scale_observations="identity")
    source = sources.load(other, log=lambda line: None)
    with pytest.raises(ValueError, match="on another scale"):
        train.run(energy(behaviour), source, tmp_path, log=lambda line: None)
    walker = sources.load(
        dataclasses.replace(SCALED, dataset=("jdql.envs.synthetic:walker2d",)),
        log=lambda line: None,
    )
    with pytest.raises(ValueError, match="data of other sizes"):
        train.run(energy(behaviour), walker, tmp_path, log=lambda line: None)
    itself = go(energy(behaviour), tmp_path / "energy")
    assert itself.finished
    with pytest.raises(ValueError, match="is a run of cep; expected diffusion_bc"):
        go(energy(tmp_path / "energy"), tmp_path / "r")


# A system of one's own, which does not act --------------------------------------------

MODEL = '''
"""A linear model of rewards: a system with fields that no test has heard of."""

import dataclasses
from typing import NamedTuple
import jax, jax.numpy as jnp
from jdql.agents.base import NOTHING, Agent
from jdql.data.sampling import transitions
from jdql.optim import Model, adam, descend, start

@dataclasses.dataclass(frozen=True)
class Config:
    pace: float = 1e-2
    rows: int = 64
    def tiny(self):
        return dataclasses.replace(self, rows=16)

class State(NamedTuple):
    step: jax.Array
    model: Model

def predict(params, observation):
    return observation @ params["w"] + params["b"]

def loss(params, batch):
    return jnp.mean((predict(params, batch.observation) - batch.reward) ** 2), {}

def make(config, spec, given=NOTHING):
    optimizer = adam(config.pace)
    def init(key):
        w = jax.random.normal(key, (spec.observation_dim,))
        params = {"w": w, "b": jnp.zeros(())}
        return State(jnp.zeros((), jnp.int32), start(params, optimizer))
    def update_step(state, batch, draws):
        model, metrics = descend("model", optimizer, state.model, loss, batch)
        return State(state.step + 1, model), metrics
    def measure(learned, data, key):
        batch = transitions(key, data, 100)
        return {"held_out_error": loss(learned, batch)[0]}
    return Agent(
        init=init,
        sample_batch=lambda key, data: transitions(key, data, config.rows),
        draw=lambda key: (),
        update_step=update_step,
        learned=lambda state: state.model.params,
        measure=measure,
    )
'''


@pytest.fixture
def own_system(tmp_path, monkeypatch) -> str:
    (tmp_path / "reward_model.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    yield "reward_model"
    sys.modules.pop("reward_model", None)


def test_a_system_that_does_not_act_trains_is_measured_and_resumes(
    own_system, monkeypatch, capsys
):
    """Through the launcher, by the name of its module, at its own tiny size."""
    monkeypatch.setattr("jdql.runtime.distributed.configure", lambda *_: None)
    arguments = [
        f"--config.agent={own_system}",
        "--config.data.held_out=2",
        "--config.train.steps=8",
    ]
    whole = ["--config=hopper_medium:smoke", "--config.run.dir=whole", *arguments]
    assert run.main(whole) == 0
    printed = capsys.readouterr().out
    assert "held_out_error" in printed
    broken = ["--config=hopper_medium:smoke", "--config.run.dir=broken", *arguments]
    assert run.main([*broken, "--config.train.steps=4"]) == 0
    assert run.main(["--config=broken", "--config.train.steps=8"]) == 0
    for name in ("metrics.jsonl", "measurements.jsonl"):
        one, other = (Path(f, name).read_text() for f in ("whole", "broken"))
        assert one == other
    rows = read_rows("whole/measurements.jsonl")
    assert [(row["step"], row["seed"]) for row in rows] == [
        (step, seed) for step in (2, 4, 6, 8) for seed in (0, 1)
    ]
    assert all(row["held_out"] and row["held_out_error"] > 0 for row in rows)
    assert not Path("whole/evaluations.jsonl").exists()
    assert not (Path("whole/checkpoints/8") / "best").exists()
    assert checkpoint.steps("whole/checkpoints") == [6, 8]
    model = jdql.load("whole", seed=1)
    assert model.acting is None
    assert model.learned.own["w"].shape == (11,)
    with pytest.raises(ValueError, match="reward_model does not act"):
        model.act(jnp.zeros(11))
    assert evaluate.main(["--run=whole"]) == 1
    assert "does not act" in capsys.readouterr().err
