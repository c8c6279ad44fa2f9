"""The record of a run."""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pytest

from jdql.runtime import metrics
from jdql.runtime.evaluate import Evaluation

MEMBERS = [{"seed": 7}, {"seed": 8}]


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def evaluation(returns, lengths, successes=None):
    """What an evaluation found; the largest reward of a step is half of the return."""
    returns = np.array(returns)
    missing = np.full(returns.shape, np.nan)
    successes = missing if successes is None else np.array(successes)
    return Evaluation(returns, np.array(lengths), returns / 2, successes)


def write_three(path, **options):
    writer = metrics.Writer(path, **options)
    for step in (100, 200, 300):
        values = {"loss": np.array([step, step + 0.5], np.float32)}
        writer.metrics(step, MEMBERS, values)
    return writer


def test_one_row_per_step_and_seed(tmp_path):
    write_three(tmp_path).close()
    rows = metrics.read_rows(tmp_path / "metrics.jsonl")
    assert rows[3] == {"step": 200, "seed": 8, "loss": 200.5}
    assert len(rows) == 6
    as_text = [{key: str(value) for key, value in row.items()} for row in rows]
    assert table(tmp_path / "metrics.csv") == as_text


def test_a_new_metric_widens_the_whole_csv(tmp_path):
    with write_three(tmp_path) as writer:
        writer.metrics(400, MEMBERS, {"loss": [1.0, 2.0], "extra": [3.0, 4.0]})
        writer.metrics(500, MEMBERS, {"loss": [5.0, 6.0]})
    rows = table(tmp_path / "metrics.csv")
    assert [row["extra"] for row in rows] == [""] * 6 + ["3.0", "4.0", "", ""]
    assert [row["loss"] for row in rows[-2:]] == ["5.0", "6.0"]


def test_resuming_equals_an_unbroken_record(tmp_path):
    write_three(tmp_path / "whole").close()
    write_three(tmp_path / "broken").close()
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 300, "se')  # the crash came here
    with metrics.Writer(tmp_path / "broken", resume_step=200) as writer:
        loss = np.array([300, 300.5], np.float32)
        writer.metrics(300, MEMBERS, {"loss": loss})
    for name in ("metrics.jsonl", "metrics.csv"):
        whole, broken = (tmp_path / d / name for d in ("whole", "broken"))
        assert whole.read_text() == broken.read_text()
    assert not list((tmp_path / "broken").glob("*.tmp"))


def test_evaluations_after_the_resumed_step_are_dropped(tmp_path):
    with metrics.Writer(tmp_path) as writer:
        for step in (100, 200):
            result = evaluation([[1.0]], [[5]])
            rows = metrics.evaluation_rows(
                step, [{"seed": 0}], result, None, dataset="d", env="e"
            )
            writer.evaluation(rows)
    metrics.Writer(tmp_path, resume_step=100).close()
    assert [r["step"] for r in metrics.read_rows(tmp_path / "evaluations.jsonl")] == [
        100
    ]


def test_a_new_record_starts_empty(tmp_path):
    write_three(tmp_path).close()
    metrics.Writer(tmp_path).close()
    assert metrics.read_rows(tmp_path / "metrics.jsonl") == []
    assert table(tmp_path / "metrics.csv") == []


def test_a_broken_line_in_the_middle_is_an_error_of_one_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2: not JSON") as error:
        metrics.read_rows(path)
    assert "\n" not in str(error.value)


def test_non_finite_numbers_stay_valid_json(tmp_path):
    with metrics.Writer(tmp_path) as writer:
        writer.metrics(1, [{"seed": 0}], {"loss": [np.nan]})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] is None


def test_evaluation_rows_carry_episodes_means_and_labels(tmp_path):
    rows = metrics.evaluation_rows(
        500,
        [{"seed": 3}, {"seed": 4}],
        evaluation([[1.0, 3.0], [5.0, 7.0]], [[10, 20], [30, 40]]),
        [[0.1, 0.3], [0.5, 0.7]],
        dataset="jdql/hopper/medium-v0",
        env="Hopper-v5",
        versions={"mujoco": "4.0.0"},
    )
    with metrics.Writer(tmp_path) as writer:
        writer.evaluation(rows)
    first, second = metrics.read_rows(tmp_path / "evaluations.jsonl")
    assert first["returns"] == [1.0, 3.0]
    assert first["return_mean"] == 2.0
    assert second["lengths"] == [30, 40]
    assert second["length_mean"] == 35.0
    assert second["score_mean"] == pytest.approx(0.6)
    assert first["dataset"] == "jdql/hopper/medium-v0"
    assert first["versions"] == {"mujoco": "4.0.0"}
    assert second["peaks"] == [2.5, 3.5]
    assert second["peak_mean"] == 3.0
    assert first["success_mean"] is first["successes"] is None


def test_successes_are_recorded_where_they_are_reported():
    result = evaluation([[1.0, 2.0]], [[1, 1]], successes=[[0.0, 1.0]])
    (row,) = metrics.evaluation_rows(
        1, [{"seed": 0}], result, None, dataset="d", env="e"
    )
    assert row["successes"] == [0.0, 1.0]
    assert row["success_mean"] == 0.5
    assert row["score_mean"] is None


def test_held_out_numbers_are_rows_of_their_own(tmp_path):
    members = [{"seed": 7, "agent.lr": 0.1}, {"seed": 7, "agent.lr": 0.2}]
    with metrics.Writer(tmp_path) as writer:
        for step in (100, 200):
            rows = metrics.measurement_rows(
                step, members, {"error": [1.0, 2.0]}, dataset="d", held_out=True
            )
            writer.measurement(rows)
    metrics.Writer(tmp_path, resume_step=100).close()
    assert metrics.read_rows(tmp_path / "measurements.jsonl") == [
        {"step": 100, **member, "error": error, "dataset": "d", "held_out": True}
        for member, error in zip(members, (1.0, 2.0), strict=True)
    ]


def test_tensorboard_gets_every_seed_and_the_mean(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs the tensorboard extra")
    write_three(tmp_path, tensorboard=True).close()
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    content = events.read_bytes()
    for tag in (b"loss/seed7", b"loss/seed8", b"loss/mean"):
        assert content.count(tag) == 3


def test_wandb_works_offline_and_keeps_its_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the wandb extra")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_three(tmp_path, wandb=True, name="test", config={"eta": 1.0}).close()
    identity = (tmp_path / "wandb_id.txt").read_text().strip()
    runs = list((tmp_path / "wandb").glob(f"offline-run-*-{identity}/*.wandb"))
    assert len(runs) == 1
    assert runs[0].stat().st_size > 0


@pytest.mark.parametrize(
    ("option", "module", "extra"),
    [("tensorboard", "tensorboardX", "tensorboard"), ("wandb", "wandb", "wandb")],
)
def test_a_missing_package_names_the_extra(
    tmp_path, monkeypatch, option, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"pip install 'jdql\[{extra}\]'") as error:
        metrics.Writer(tmp_path, **{option: True})
    assert "\n" not in str(error.value)
