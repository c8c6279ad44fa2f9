"""The speed benchmark: its counting, its errors, and a real run of one mode."""

from __future__ import annotations

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from experiments import bench
from experiments.benchmarks import policies
from experiments.benchmarks.acting import act_rows
from experiments.benchmarks.machine import products, rounds
from experiments.benchmarks.policies import Case
from experiments.benchmarks.training import train_rows, update_flops
from experiments.launch.resolve import resolve
from jdql.agents import decision_diffuser, diffuser, diffusion_policy
from jdql.networks.temporal_unet import TemporalUnet
from jdql.networks.transformer import ChunkTransformer


def test_flops_of_an_update_by_hand():
    # Batch 1, one diffusion step; layers 39-256-256-256-6 and 23-256-256-256-1.
    actor = 39 * 256 + 2 * 256 * 256 + 256 * 6
    critic = 23 * 256 + 2 * 256 * 256 + 256
    back_to_input = 2 * 256 * 256 + 256 * 6  # hidden and output layers of the actor
    target = actor + 2 * critic
    on_data = 2 * critic + 2 * critic + 2 * (2 * 256 * 256 + 256)
    cloning = 2 * actor + back_to_input + 16 * 256
    policy = 2 * actor + back_to_input + 22 * 256
    raised = 2 * critic + 2 * 256 * 256 + 256 + 6 * 256
    expected = 2 * (target + on_data + cloning + policy + raised)
    assert update_flops(steps=1, batch=1) == pytest.approx(expected)


def test_flops_grow_by_a_forward_and_a_training_pass_per_step():
    growth = update_flops(6, 256) - update_flops(5, 256)
    actor = 39 * 256 + 2 * 256 * 256 + 256 * 6
    assert growth / (2 * 256 * actor) == pytest.approx(4, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "'fly' cannot be measured"),
        (["act", "--batch=0"], "--batch takes whole numbers"),
        (["act", "--config.seeds=3"], "takes no --config"),
        (["act", "--agents=difuser"], "difuser"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert bench.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("unoptimised")
def test_acting_is_measured(tmp_path, capsys):
    file = tmp_path / "rows.json"
    command = ["act", "--agents=diffusion_ql", "--steps=1", f"--json={file}"]
    assert bench.main(command) == 0
    machine, row = json.loads(file.read_text())
    assert machine["large_square_gflops"] > 0
    assert row["p99_ms"] >= row["median_ms"] > 0
    assert (row["steps"], row["candidates"], row["evaluations"]) == (1, 50, 50)
    assert row["plans_per_s"] == pytest.approx(1e3 / row["median_ms"])
    assert row["decisions_per_s"] == pytest.approx(row["plans_per_s"], rel=0.2)
    assert "decisions_per_s" in capsys.readouterr().out


@pytest.mark.usefixtures("unoptimised")
def test_ways_of_acting_are_rows_of_a_table():
    ways = ({"sampler": "ancestral", "sample_steps": 20}, {"executed": 2})
    case = Case("diffusion_policy:two_route", ways)
    rows = list(act_rows(case, "cpu", states=2, seconds=0.0))
    told = [(row["sampler"], row["evaluations"], row["actions"]) for row in rows]
    assert told == [("ancestral", 20, 4), ("ddim", 10, 2)]
    for row in rows:
        assert row["plans_per_s"] == pytest.approx(2e3 / row["median_ms"])
        # Handing actions out costs something: never more than h times the plans.
        assert 0 < row["decisions_per_s"] < 1.5 * row["actions"] * row["plans_per_s"]


SMALL = {
    "decision_diffuser:hopper_medium": decision_diffuser.Config().tiny(),
    "diffuser:hopper_medium": diffuser.Config().tiny(),
    "diffusion_policy:pusht": diffusion_policy.Config().tiny(),
}


@pytest.mark.usefixtures("unoptimised")
@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("diffusion_policy:pusht", {"network": "transformer", "sampler": "edm_heun"}),
        ("diffuser:hopper_medium", {"warm_start": 3}),
        (
            "diffuser:hopper_medium",
            {"warm_start": 5, "sampler": "ddim", "sample_steps": 4},
        ),
        (
            "decision_diffuser:hopper_medium",
            {"sampler": "dpmpp_2m", "sample_steps": 4},
        ),
    ],
)
def test_calls_of_the_network_are_counted_right(config, changes, monkeypatch):
    """Against the calls that happen, in the second plan of an episode."""
    agent = dataclasses.replace(SMALL[config], **changes)
    monkeypatch.setattr(
        policies,
        "resolve",
        lambda words: dataclasses.replace(resolve(words), agent=agent),
    )
    (policy,) = policies.make(Case(config), "authors").values()
    calls = []

    def counted(call, arguments, named, context):
        denoiser = isinstance(context.module, TemporalUnet | ChunkTransformer)
        if denoiser and context.method_name == "__call__":
            jax.debug.callback(lambda: calls.append(1))
        return call(*arguments, **named)

    learned = jax.tree.map(lambda leaf: leaf[0], policy.learned)
    act, history = policy.acting.act, policy.acting.history
    seen = jnp.zeros((history, policy.recipe.spec.observation_dim))
    with nn.intercept_methods(counted):
        _, carry = act(learned, policy.acting.reset(), seen, jax.random.key(0))
        jax.effects_barrier()
        calls.clear()
        act(learned, carry, seen, jax.random.key(1))
        jax.effects_barrier()
    assert len(calls) == policies.chain(policy.recipe).calls


def test_a_system_without_a_line_acts_as_it_is():
    assert policies.chosen(["idql"], [5]) == [Case("idql:hopper_medium")]
    ours = policies.chosen(["diffusion_policy"], [5])
    assert [case.config for case in ours] == [
        "diffusion_policy:pusht",
        "diffusion_policy:pusht:transformer",
    ]


def test_works_take_turns():
    order: list[str] = []
    works = {name: (lambda name=name: order.append(name)) for name in "ab"}
    taken = rounds(works, seconds=0.0)
    assert order == ["a", "a", "b", "b"] + ["a", "b"] * 5
    assert {name: len(times) for name, times in taken.items()} == {"a": 5, "b": 5}


def test_products_count_what_they_compute():
    chain = products(size=8, copies=3)
    repeats = round(2e9 / (2 * 8**3 * 3))
    assert chain.flops == repeats * 3 * 2 * 8**3


@pytest.mark.usefixtures("unoptimised")
def test_precisions_are_compared_in_the_same_rounds():
    plain, rounded = train_rows(["float32", "bfloat16"], 1, 4, 1, seconds=0.0)
    assert (plain["precision"], rounded["precision"]) == ("float32", "bfloat16")
    assert plain["of_float32"] == 1.0
    assert rounded["of_float32"] > 0
    for row in (plain, rounded):
        assert row["gflops"] == pytest.approx(
            row["seed_updates_per_s"] * update_flops(1, 4) / 1e9
        )
        assert row["of_large_square"] > 0
        assert row["memory_gib"] > 0.1  # a million transitions
