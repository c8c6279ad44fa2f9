"""The speed benchmark: its counting, its errors, and a real run of one mode."""

from __future__ import annotations

import json

import pytest

from experiments import bench
from experiments.benchmarks.machine import products, rounds
from experiments.benchmarks.training import train_rows, update_flops


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
    assert bench.main(["act", "--batch=1", "--steps=1", f"--json={file}"]) == 0
    machine, row = json.loads(file.read_text())
    assert machine["large_square_gflops"] > 0
    assert row["p99_ms"] >= row["median_ms"] > 0
    assert row["decisions_per_s"] == pytest.approx(1e3 / row["median_ms"])
    assert "decisions_per_s" in capsys.readouterr().out


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
