"""`--config.PATH=TEXT`: found among the arguments, typed, and put in its place."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest

from experiments.launch import overrides
from experiments.launch.overrides import Override, nearest, parse, split_overrides
from jdql.config import Config


@dataclasses.dataclass(frozen=True)
class Settings:
    eta: float = 1.0
    grad_norm: float | None = 5.0
    hidden: tuple[int, ...] = (8, 8)
    backup: bool = False


def config() -> Config:
    return Config(name="a", agent=Settings())


def changed(*arguments: str) -> Config:
    left, found = split_overrides(list(arguments))
    assert left == []
    result = config()
    for override in found:
        result = overrides.apply(result, override)
    return result


def test_overrides_are_taken_out_in_order():
    left, found = split_overrides(
        ["--config=w", "--config.seeds=3", "--list", "--noconfig.run.wandb", "-x"]
    )
    assert left == ["--config=w", "--list", "-x"]
    assert found == [Override("seeds", "3"), Override("run.wandb", "false")]


def test_a_value_may_be_the_next_argument():
    assert changed("--config.train.steps", "7").train.steps == 7
    assert changed("--config.run.wandb", "--config.seeds=2").run.wandb is True


@pytest.mark.parametrize(
    ("argument", "read", "value"),
    [
        ("--config.train.steps=3000", lambda c: c.train.steps, 3000),
        ("--config.train.steps=3e6", lambda c: c.train.steps, 3_000_000),
        ("--config.train.steps=1_000", lambda c: c.train.steps, 1000),
        ("--config.seed=-1", lambda c: c.seed, -1),
        ("--config.seeds=16", lambda c: c.seeds, 16),
        ("--config.seeds=none", lambda c: c.seeds, None),
        ("--config.agent.eta=3e-4", lambda c: c.agent.eta, 3e-4),
        ("--config.agent.eta=2", lambda c: c.agent.eta, 2.0),
        ("--config.agent.grad_norm=None", lambda c: c.agent.grad_norm, None),
        ("--config.agent.grad_norm=9", lambda c: c.agent.grad_norm, 9.0),
        ("--config.agent.hidden=64,32", lambda c: c.agent.hidden, (64, 32)),
        ("--config.agent.hidden=(64, 32)", lambda c: c.agent.hidden, (64, 32)),
        ("--config.agent.hidden=(64,)", lambda c: c.agent.hidden, (64,)),
        ("--config.agent.backup", lambda c: c.agent.backup, True),
        ("--config.agent.backup=TRUE", lambda c: c.agent.backup, True),
        ("--noconfig.agent.backup", lambda c: c.agent.backup, False),
        ("--config.run.dir=runs/a=b", lambda c: c.run.dir, "runs/a=b"),
        ("--config.run.dir=", lambda c: c.run.dir, ""),
        ("--config.data.dataset=a/b-v0,c.npz", lambda c: len(c.data.dataset), 2),
        ("--config.eval.env_kwargs.x=3", lambda c: c.eval.env_kwargs, {"x": 3}),
        ("--config.eval.env_kwargs.x=abc", lambda c: c.eval.env_kwargs, {"x": "abc"}),
        ("--config.eval.env_kwargs.x=[1, 2]", lambda c: c.eval.env_kwargs["x"], [1, 2]),
        ("--config.eval.env_kwargs.x=false", lambda c: c.eval.env_kwargs["x"], False),
    ],
)
def test_text_is_read_by_the_fields_type(argument, read, value):
    found = read(changed(argument))
    assert found == value
    assert type(found) is type(value)


def test_the_rest_of_the_config_stays():
    base = config()
    new = changed("--config.agent.eta=0.5")
    assert dataclasses.replace(new, agent=base.agent) == base


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.agent.etta=1", "--config.agent.eta$"),
        ("--config.eta=1", "--config.agent.eta$"),
        ("--config.train.step=1", "--config.train.steps$"),
        ("--config.trian.steps=1", "--config.train.steps$"),
        ("--config.seeds.x=1", "--config.seeds$"),
        ("--config.train.steps=abc", "steps=abc: expected a whole number"),
        ("--config.train.steps=1.5", "expected a whole number"),
        ("--config.train.steps=inf", "expected a whole number"),
        ("--config.agent.eta=x", "expected a number"),
        ("--config.run.wandb=maybe", "expected true or false"),
        ("--config.agent.hidden=8,x", "expected a whole number"),
        ("--config.agent.eta", "needs a value"),
        ("--config.train=3", "is a section: set steps, "),
        ("--noconfig.train.steps", "expected a whole number"),
        ("--noconfig.run.wandb=1", "takes no value"),
        ("--config.eval.env_kwargs=3", "cannot be set on the command line"),
        ("--config.eval.env_kwargs.a.b=3", "no such setting"),
        ("--config.=3", "no such setting"),
    ],
)
def test_a_mistake_is_one_line(argument, message):
    with pytest.raises(ValueError, match=message) as caught:
        changed(argument)
    assert "\n" not in str(caught.value)


def test_other_types():
    assert parse("b", Literal["a", "b"]) == "b"
    assert parse("3,x", tuple[int, str]) == (3, "x")
    assert parse("x", int | str) == "x"
    assert parse("", tuple[int, ...]) == ()
    with pytest.raises(ValueError, match="one of a, b"):
        parse("c", Literal["a", "b"])
    with pytest.raises(ValueError, match="expected 2 values"):
        parse("3", tuple[int, str])
    with pytest.raises(ValueError, match="command line"):
        parse("c", Any)


def test_nearest():
    assert nearest("walker2d_mediun", ["hopper_medium", "walker2d_medium"]) == (
        "walker2d_medium"
    )
    assert nearest("x", []) == ""
