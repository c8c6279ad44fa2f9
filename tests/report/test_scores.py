"""The summary of a run's evaluations."""

from __future__ import annotations

import pytest

from jdql.report import scores


def row(step, seed, score, return_mean=0.0):
    return {
        "step": step,
        "seed": seed,
        "score_mean": score,
        "return_mean": return_mean,
        "dataset": "jdql/walker2d/medium-v0",
        "env": "Walker2d-v5",
    }


def run_of_twelve():
    """Seed 0 scores 1..12; seed 1 scores 24, 22, .., 2."""
    rows = [row(100 * i, 0, float(i)) for i in range(1, 13)]
    return rows + [row(100 * i, 1, 26.0 - 2 * i) for i in range(1, 13)]


def test_last_last_ten_and_best_by_hand():
    summary = scores.summarise(reversed(run_of_twelve()))
    last, ten, best = (summary.selections[k] for k in ("last", "last_ten", "best"))
    assert last.per_seed == {0: 12.0, 1: 2.0}
    assert (last.mean, last.std) == (7.0, 5.0)
    assert ten.per_seed == {0: 7.5, 1: 11.0}  # means of 3..12 and of 20..2
    assert best.per_seed == {0: 12.0, 1: 24.0}
    assert best.steps == {0: 1200, 1: 100}  # each seed's own
    assert summary.evaluations == 12


def test_fewer_than_ten_evaluations_average_all():
    summary = scores.summarise([row(1, 0, 4.0), row(2, 0, 8.0)])
    assert summary.selections["last_ten"].mean == 6.0


def test_returns_are_summarised_without_scores():
    summary = scores.summarise([row(1, 0, None, 30.0), row(2, 0, None, 10.0)])
    assert summary.unit == "return"
    assert summary.selections["best"].mean == 30.0


def test_both_datasets_show_where_a_run_mixed_them():
    other = row(2, 0, 1.0) | {"dataset": "mujoco/walker2d/medium-v0"}
    dataset = scores.summarise([row(1, 0, 1.0), other]).dataset
    assert dataset == "jdql/walker2d/medium-v0 + mujoco/walker2d/medium-v0"


def test_no_rows_is_one_line():
    with pytest.raises(ValueError, match="no evaluation yet"):
        scores.summarise([])


def test_table_says_which_is_which():
    text = scores.format_summary(scores.summarise(run_of_twelve()))
    title, head, last, ten, best = text.splitlines()
    assert "Walker2d-v5" in title
    assert "jdql/walker2d/medium-v0" in title
    assert head.split()[:5] == ["selection", "mean", "std", "seed", "0"]
    assert last.startswith("last  ")
    assert "7.0" in last
    assert ten.startswith("last ten")
    assert "last 10 evaluations" in ten
    assert best.startswith("best")
    assert "optimistic" in best
