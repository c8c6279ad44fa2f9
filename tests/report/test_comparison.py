"""Which runs are put together, and what the tables make of them."""

from __future__ import annotations

import numpy as np
import pytest

from jdql.report import comparison, tables
from jdql.report.comparison import Run, Task


def run(folder, scores, agent="diffusion_ql", task="walker2d", seed=0, **settings):
    """A run of one seed per list of scores, evaluated every ten updates."""
    rows = [
        {
            "step": 10 * (i + 1),
            "seed": seed + s,
            "dataset": f"jdql/{task}/medium-v0",
            "env": f"{task}-v5",
            "score_mean": None if task == "toy" else float(score),
            "return_mean": float(score),
        }
        for s, curve in enumerate(scores)
        for i, score in enumerate(curve)
    ]
    return Run(folder, agent, {"eta": 1.0, **settings}, rows)


WALKER = Task("walker2d-v5", "jdql/walker2d/medium-v0", "score")


def test_seeds_of_several_runs_are_one_group():
    results = comparison.group([run("a", [[1, 2], [3, 4]]), run("b", [[5, 6]], seed=2)])
    (key,) = results
    assert key == ("diffusion_ql", WALKER)
    assert results[key].summary.selections["last"].per_seed == {0: 2, 1: 4, 2: 6}


def test_the_mean_curve_ends_where_a_seed_ends():
    results = comparison.group([run("a", [[1, 2, 3]]), run("b", [[5, 6]], seed=1)])
    result = results["diffusion_ql", WALKER]
    np.testing.assert_array_equal(result.steps, [10, 20])
    np.testing.assert_array_equal(result.values, [[1, 2], [5, 6]])
    assert [len(steps) for steps, _ in result.curves] == [3, 2]


def test_settings_that_differ_between_tasks_do_not_split_a_method():
    runs = [run("a", [[1]], eta=1.0), run("b", [[1]], task="hopper", eta=0.5)]
    assert comparison.methods(comparison.group(runs)) == ["diffusion_ql"]


def test_settings_that_differ_within_a_task_name_the_methods():
    runs = [
        run("a", [[1]], eta=1.0, hidden=(8, 8)),
        run("b", [[1]], eta=0.5, hidden=(8, 8)),
        run("c", [[1]], agent="diffusion_bc"),
    ]
    assert comparison.methods(comparison.group(runs)) == [
        "diffusion_ql eta=1",
        "diffusion_ql eta=0.5",
        "diffusion_bc",
    ]


def test_a_seed_counts_once():
    with pytest.raises(ValueError, match="a and b both hold seed 1 of diffusion_ql"):
        comparison.group([run("a", [[1], [2]]), run("b", [[3]], seed=1)])


def test_no_run_is_one_line():
    with pytest.raises(ValueError, match="nothing to compare"):
        comparison.group([])


def two_tasks():
    return comparison.group(
        [
            run("a", [[10], [20]]),
            run("b", [[40], [50]], task="hopper"),
            run("c", [[10], [5]], agent="diffusion_bc"),
            run("d", [[90]], agent="diffusion_bc", task="halfcheetah"),
            run("e", [[3000], [1000]], task="toy"),
        ]
    )


def test_scores_and_returns_are_never_aggregated_together():
    results = two_tasks()
    sets = comparison.comparable(results)
    assert [[t.unit for t in chosen] for chosen in sets] == [["score"] * 3, ["return"]]


def test_methods_are_compared_on_the_tasks_that_all_have():
    results = two_tasks()
    common, present = comparison.shared(results, comparison.comparable(results)[0])
    assert common == [WALKER]
    assert present == ["diffusion_ql", "diffusion_bc"]


def test_aggregates_by_hand():
    text = tables.format_aggregates(two_tasks(), "last", np.random.default_rng(0))
    scores, returns = text.split("\n\n")
    title, _, ql, bc, _, improvement = scores.splitlines()
    assert "the 1 of 3 tasks that all methods have" in title
    assert ql.startswith("diffusion_ql     2  15.0 [10.0, 20.0]")
    assert ql.endswith("85.0 [80.0, 90.0]")  # the gap to 100
    assert bc.startswith("diffusion_bc     2    7.5 [5.0, 10.0]")
    # 10 = 10, 10 > 5, 20 > 10, 20 > 5
    assert improvement.startswith("P(diffusion_ql > diffusion_bc) = 0.88 [0.50, 1.00]")
    assert "return on toy-v5" in returns
    assert "2000.0 [1000.0, 3000.0]" in returns
    assert "gap" not in returns


def test_one_seed_has_no_interval():
    results = comparison.group([run("a", [[12.0]])])
    text = tables.format_aggregates(results, "last", np.random.default_rng(0))
    assert "[" not in text
    assert "nothing to resample" in text


def test_uneven_seeds_are_told():
    results = comparison.group([run("a", [[1], [2]]), run("b", [[3]], task="hopper")])
    text = tables.format_aggregates(results, "last", np.random.default_rng(0))
    assert "one seed only: the intervals are too narrow" in text
    assert "the IQM counts every run once" in text


def test_no_shared_task_is_told():
    results = comparison.group(
        [run("a", [[1]]), run("b", [[3]], agent="diffusion_bc", task="hopper")]
    )
    text = tables.format_aggregates(results, "last", np.random.default_rng(0))
    assert text == "no aggregate of scores: no task was run by every method"


def test_tables_name_the_dataset_and_the_spread():
    results = comparison.group([run("a", [[1, 20], [30, 10]])])
    title, head, line = tables.format_tables(results).split("\n\n")[0].splitlines()
    assert title == "score on walker2d-v5, trained on jdql/walker2d/medium-v0"
    assert head.split()[:3] == ["method", "seeds", "updates"]
    shown = " ".join(line.split())
    assert shown == "diffusion_ql 2 20 2 15.0 +- 5.0 15.2 +- 4.8 25.0 +- 5.0"


def test_tables_by_agent_have_a_line_for_each_task():
    blocks = tables.format_tables(two_tasks(), by="agent").split("\n\n")
    assert blocks[0].splitlines()[0] == "diffusion_ql"
    assert [line.split(" on ")[0] for line in blocks[0].splitlines()[2:]] == [
        "score",
        "score",
        "return",
    ]
