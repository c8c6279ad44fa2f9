"""The run loop: resuming, stopping, killing, sweeping, and losses gone wrong."""

from __future__ import annotations

import dataclasses
import os
import signal

import chex
import jax
import numpy as np
import pytest

from experiments import run
from jdql.agents import base, diffusion_ql
from jdql.config import Config, DataConfig, EvalConfig, TrainConfig, check_sweep
from jdql.data import sources
from jdql.runtime import checkpoint, members, stored, train, trained
from jdql.runtime.means import Means
from jdql.runtime.metrics import read_rows
from jdql.runtime.stopping import signals

AGENT = diffusion_ql.Config().tiny()
CONFIG = Config(
    name="tiny",
    agent=AGENT,
    data=DataConfig(dataset=("jdql.envs.synthetic:hopper",)),
    train=TrainConfig(steps=6, log_every=2, call=1),
    eval=EvalConfig(
        env="jdql/Synthetic-v0",
        env_module="jdql.envs.synthetic",
        env_kwargs={"task": "hopper", "max_episode_steps": 3},
        every=3,
        episodes=2,
    ),
    seeds=2,
)
SOURCE = sources.load(CONFIG.data, log=lambda line: None)
FILES = ("metrics.jsonl", "metrics.csv", "evaluations.jsonl")


def go(folder, config: Config = CONFIG, **options) -> train.Outcome:
    return train.run(config, SOURCE, folder, **options)


def saved(folder, config: Config = CONFIG):
    """Everything that the latest checkpoint holds, on the host."""
    stored.save(config, folder)
    run = trained.open_run(folder)
    found = trained.states(run), trained.restore(run), trained.restore(run, "best")
    return jax.tree.map(np.asarray, found)


def assert_same(one, other) -> None:
    for name in FILES:
        assert (one / name).read_text() == (other / name).read_text(), name
    chex.assert_trees_all_equal(saved(one), saved(other))
    one, other = (checkpoint.metadata(f / "checkpoints") for f in (one, other))
    assert one == other


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    assert go(folder, log=lambda line: None) == (6, True)
    return folder


def test_the_record_has_every_moment(unbroken):
    rows = read_rows(unbroken / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 2, 4, 4, 6, 6]
    rows = read_rows(unbroken / "evaluations.jsonl")
    assert [row["step"] for row in rows] == [3, 3, 6, 6]
    assert {len(row["returns"]) for row in rows} == {2}
    assert checkpoint.steps(unbroken / "checkpoints") == [3, 6]


def test_stopped_and_resumed_equals_unbroken(unbroken, tmp_path):
    """Update 3 lies within a mean of two updates, so that one goes on too."""

    def stop(line: str) -> None:
        if line.startswith("update 3"):
            os.kill(os.getpid(), signal.SIGINT)

    assert go(tmp_path, log=stop) == (3, False)
    assert go(tmp_path, resume=True) == (6, True)
    assert_same(unbroken, tmp_path)


def test_a_kill_loses_the_updates_since_the_checkpoint_alone(
    unbroken, tmp_path, monkeypatch
):
    write = train.Writer.metrics

    def die(self, step, *rest):
        write(self, step, *rest)
        if step == 4:
            raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(train.Writer, "metrics", die)
        with pytest.raises(SystemExit):
            go(tmp_path)
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["step"] == 4
    said: list[str] = []
    assert go(tmp_path, resume=True, log=said.append) == (6, True)
    assert said[0] == "resuming at update 3"
    assert_same(unbroken, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_flag_and_the_second_stops_at_once(number):
    before, said = signal.getsignal(number), []
    with signals(said.append) as stopping:
        assert not stopping()
        os.kill(os.getpid(), number)
        assert stopping()
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_chunks_of_other_sizes_write_the_same_means():
    values = {"loss": np.random.default_rng(0).normal(size=(2, 7)).astype(np.float32)}
    whole, parts = Means(), Means()
    whole.add(values)
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        parts.add({"loss": values["loss"][:, start:stop]})
        parts = Means(parts.state())
    expected = values["loss"].astype(np.float64).mean(1)
    np.testing.assert_allclose(whole.state()["sums"]["loss"], 7 * expected, rtol=1e-14)
    assert parts.state() == whole.state()
    np.testing.assert_array_equal(parts.take()["loss"], whole.take()["loss"])
    assert whole.state()["count"] == 0


def test_a_loss_that_is_no_number_ends_in_one_line(capsys, monkeypatch):
    monkeypatch.setattr("jdql.runtime.distributed.configure", lambda *_: None)
    sweep = "--sweep=agent.lr=1e-3,1e30"
    assert run.main(["--config=bandit:smoke", "--config.run.dir=r", sweep]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: seed 0 with agent.lr=1e+30: ")
    assert "at update 2; the last checkpoint is none" in error


# Sweeps -------------------------------------------------------------------------------


def test_a_member_of_a_sweep_equals_a_run_of_its_own(tmp_path):
    """Bit for bit, in training and in acting; temperature 0 takes the best action."""
    short = dataclasses.replace(
        CONFIG, train=TrainConfig(steps=3, log_every=3, call=1), seeds=1, seed=5
    )
    sweep = (("agent.eta", (0.3, 1.7)), ("agent.temperature", (0.0, 0.01)))
    swept = dataclasses.replace(short, sweep=sweep)
    go(tmp_path / "swept", swept)
    together = saved(tmp_path / "swept", swept)
    rows = members.members_of(swept)
    assert len(rows) == 4
    for i, row in enumerate((rows[0], rows[3])):
        member, folder = 3 * i, tmp_path / str(i)
        values = {"eta": row["agent.eta"], "temperature": row["agent.temperature"]}
        agent = dataclasses.replace(AGENT, **values)
        own = dataclasses.replace(short, agent=agent)
        go(folder, own)
        one = jax.tree.map(lambda leaf, m=member: leaf[m : m + 1], together)
        chex.assert_trees_all_equal(one, saved(folder, own))
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            (alone,) = read_rows(folder / name)
            assert read_rows(tmp_path / "swept" / name)[member] == alone | row
    assert checkpoint.metadata(tmp_path / "swept" / "checkpoints")["members"] == rows
    # The settings matter: the members differ from one another, in acting too.
    returns = [r["returns"] for r in read_rows(tmp_path / "swept/evaluations.jsonl")]
    assert len({str(r) for r in returns}) == 4


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("agent.etaa", (1.0,), "the nearest of them is agent.eta"),
        ("eta", (1.0,), "the nearest of them is agent.eta"),
        ("train.steps", (1.0,), "the float settings of the agent can"),
        ("agent.diffusion_steps", (2.0, 5.0), "it is no float"),
        ("agent.schedule", (1.0,), "it is no float"),
        ("agent.eta", (1.0, 1.0), "different values"),
        ("agent.eta", (), "different values"),
    ],
)
def test_what_cannot_be_swept_is_refused(name, values, message):
    with pytest.raises(ValueError, match=message) as error:
        check_sweep(dataclasses.replace(CONFIG, sweep=((name, values),)))
    assert "\n" not in str(error.value)


def test_a_setting_that_decides_the_program_is_refused(tmp_path, monkeypatch):
    """With the setting by name, and what to do, whether it is swept or not."""

    def make(config, spec, given):
        agent = diffusion_ql.make(config, spec, given)
        return agent if config.tau < 0.5 else agent._replace(learned=None)

    monkeypatch.setattr(base, "maker", lambda config: make)
    with pytest.raises(ValueError, match=r"agent.tau decides the program") as error:
        go(tmp_path)
    assert "metadata=jdql.config.STATIC" in str(error.value)
    assert "\n" not in str(error.value)


def test_none_may_be_replaced_by_numbers():
    none = dataclasses.replace(AGENT, grad_norm=None)
    swept = dataclasses.replace(
        CONFIG, agent=none, sweep=(("agent.grad_norm", (1.0, 5.0)),)
    )
    check_sweep(swept)
    everyone = members.members_of(swept)
    settings = members.stacked(none, everyone).settings
    np.testing.assert_array_equal(settings["grad_norm"], [1, 1, 5, 5])
    assert "grad_norm" not in members.stacked(none, everyone[:0] or [{"seed": 0}])[1]
