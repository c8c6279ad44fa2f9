"""Results of a run that swept settings; and which of its members are played."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.evaluate import _chosen
from experiments.launch.overrides import parse_sweep
from jdql.report import scores, sweeps

ROWS = [
    {
        "step": step,
        "seed": seed,
        "agent.eta": eta,
        "dataset": "d",
        "env": "e",
        "return_mean": 0.0,
        "score_mean": 10 * eta + seed + step,
    }
    for step in (1, 2)
    for eta in (0.5, 2.0)
    for seed in (0, 1)
]


def test_a_line_for_each_setting_over_its_seeds():
    title, head, half, two, note = sweeps.format_sweep(ROWS).splitlines()
    assert "2 seed(s) for each of 2 settings, 2 evaluation(s)" in title
    assert head.split()[:3] == ["agent.eta", "last", "std"]
    # 10 eta + step, the mean over seeds 0 and 1 adding 0.5, whose deviation is 0.5.
    assert half.split() == ["0.5", "7.5", "0.5", "7.0", "0.5", "7.5", "0.5"]
    assert two.split() == ["2", "22.5", "0.5", "22.0", "0.5", "22.5", "0.5"]
    assert "optimistic" in note


def test_members_are_not_mixed_into_one_curve():
    with pytest.raises(ValueError, match="the rows of a sweep") as error:
        scores.summarise(ROWS)
    assert "\n" not in str(error.value)
    groups = sweeps.by_settings(ROWS)
    assert list(groups) == ["agent.eta=0.5", "agent.eta=2"]
    assert scores.summarise(groups["agent.eta=2"]).selections["last"].mean == 22.5


def test_an_unswept_run_is_one_group():
    rows = [{k: v for k, v in row.items() if k != "agent.eta"} for row in ROWS[:2]]
    assert sweeps.by_settings(rows) == {"": rows}


def test_members_are_chosen_by_seed_and_by_value():
    folder, rows = Path("r"), ROWS[:4]
    assert _chosen(rows, folder, None, ()) == [0, 1, 2, 3]
    assert _chosen(rows, folder, 1, ()) == [1, 3]
    assert _chosen(rows, folder, 1, parse_sweep("agent.eta=2")) == [3]
    for seed, text, message in (
        (7, "", "has no seed 7"),
        (None, "agent.eta=3", r"has no agent\.eta=3: it has \[0\.5, 2\.0\]"),
        (None, "agent.lr=3", r"did not sweep agent\.lr"),
    ):
        with pytest.raises(ValueError, match=message):
            _chosen(rows, folder, seed, parse_sweep(text))


@pytest.mark.parametrize(
    "text", ["agent.eta", "agent.eta=", "agent.eta=a", "agent.eta=nan", "agent.eta=1,x"]
)
def test_a_sweep_that_does_not_read_says_how_it_is_written(text):
    with pytest.raises(ValueError, match=r"agent\.FIELD=NUMBER"):
        parse_sweep(text)


def test_a_sweep_is_read():
    assert parse_sweep(" agent.eta=0.5,1 ; agent.lr=3e-4 ") == (
        ("agent.eta", (0.5, 1.0)),
        ("agent.lr", (3e-4,)),
    )
