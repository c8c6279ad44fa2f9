"""Model selection from a run's record, against choices made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jdql.report import selection


def row(step, seed, score):
    return {
        "step": step,
        "seed": seed,
        "score_mean": score,
        "return_mean": 10 * score,
        "dataset": "jdql/walker2d/medium-v0",
        "env": "Walker2d-v5",
    }


def metric(step, seed, loss):
    return {"step": step, "seed": seed, "bc_loss": loss, "critic_loss": 1.0}


# Seed 0: mean losses .4 .1 .3 .2 since the evaluation before; scores 10 20 40 30.
ROWS = [row(20 * i, 0, s) for i, s in enumerate((10.0, 20.0, 40.0, 30.0), 1)]
METRICS = [
    metric(10 * i, 0, loss)
    for i, loss in enumerate((0.5, 0.3, 0.0, 0.2, 0.35, 0.25, 0.3, 0.1), 1)
]
# Seed 1: losses .1 .2 .3 .4 and scores that fall.
ROWS_1 = [row(20 * i, 1, s) for i, s in enumerate((8.0, 6.0, 4.0, 2.0), 1)]
METRICS_1 = [metric(20 * i, 1, loss) for i, loss in enumerate((0.1, 0.2, 0.3, 0.4), 1)]


@pytest.mark.parametrize(
    ("top_k", "intended", "coded"),
    # argsort is (1, 3, 2, 0): rank k has evaluation argsort[k]; the authors' mask
    # finds where argsort holds k instead.
    [(0, 1, 3), (1, 3, 0), (2, 2, 2), (3, 0, 1)],
)
def test_both_offline_indices_by_hand(top_k, intended, coded):
    losses = [0.4, 0.1, 0.3, 0.2]
    assert selection.offline_index(losses, top_k) == intended
    assert selection.offline_index_as_coded(losses, top_k) == coded


def test_equal_losses_take_the_earlier_evaluation():
    assert selection.offline_index([0.2, 0.1, 0.1], 0) == 1
    assert selection.offline_index([0.2, 0.1, 0.1], 1) == 2


def test_losses_are_means_since_the_evaluation_before():
    curve = [(20, 1.0), (40, 1.0), (60, 1.0), (80, 1.0)]
    losses = selection.window_losses(METRICS, curve)
    np.testing.assert_allclose(losses, [0.4, 0.1, 0.3, 0.2])


def test_every_seed_chooses_for_itself():
    summary = selection.select(
        reversed(ROWS + ROWS_1), METRICS + METRICS_1, selection.NAMES, top_k=1
    )
    chosen = summary.selections
    assert tuple(chosen) == selection.NAMES
    assert chosen["online"].steps == {0: 60, 1: 20}
    assert chosen["online"].per_seed == {0: 40.0, 1: 8.0}
    assert chosen["offline"].steps == {0: 80, 1: 40}
    assert chosen["offline"].per_seed == {0: 30.0, 1: 6.0}
    assert chosen["offline"].mean == 18.0
    assert chosen["offline_as_coded"].steps == {0: 20, 1: 40}
    assert chosen["last"].per_seed == {0: 30.0, 1: 2.0}
    assert chosen["last_ten"].per_seed == {0: 25.0, 1: 5.0}


def test_table_says_which_is_which():
    summary = selection.select(ROWS, METRICS, top_k=1)
    text = selection.format_selection(summary)
    assert "2nd-lowest bc_loss" in text
    assert "index fault kept" in text
    assert "optimistic" in text
    _, updates = text.split("\n\n")
    assert "offline as coded      20" in updates
    assert "\noffline               80\n" in updates


def test_lowest_needs_no_number():
    summary = selection.select(ROWS, METRICS, ["offline"], top_k=0)
    assert summary.selections["offline"].meaning == (
        "the evaluation of the lowest bc_loss"
    )


def test_rules_without_losses_need_no_metrics():
    summary = selection.select(ROWS, [], ["last", "online"])
    assert list(summary.selections) == ["last", "online"]


def test_a_run_without_bc_loss_is_one_line():
    metrics = [{"step": 20, "seed": 0, "critic_loss": 1.0}]
    with pytest.raises(ValueError, match="needs bc_loss, and this run recorded none"):
        selection.select(ROWS, metrics, ["offline"])


def test_an_evaluation_without_metrics_before_it_is_named():
    with pytest.raises(ValueError, match="between the updates 40 and 60"):
        selection.select(ROWS, METRICS[:4] + METRICS[6:], ["offline"])


def test_too_few_evaluations_are_named():
    with pytest.raises(ValueError, match=r"top_k=4 needs at least 5 .* has 4"):
        selection.select(ROWS, METRICS, ["offline"], top_k=4)


@pytest.mark.parametrize("names", [["best"], [], ["last", "first"]])
def test_unknown_names_are_told(names):
    with pytest.raises(ValueError, match="online,offline,offline_as_coded"):
        selection.select(ROWS, METRICS, names)
