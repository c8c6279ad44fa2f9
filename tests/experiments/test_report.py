"""The report program, and the selection table of the evaluation program."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from experiments import evaluate, report
from experiments.launch.overrides import Override
from experiments.launch.resolve import resolve
from jdql.runtime import stored
from jdql.runtime.evaluate import Evaluation
from jdql.runtime.metrics import Writer, evaluation_rows


def make_run(folder, scores, agent="diffusion_ql", config="walker2d_medium", **changes):
    """A run folder with one evaluation per column of `scores`, (seeds, evaluations)."""
    overrides = [] if agent == "diffusion_ql" else [Override("agent", agent)]
    settings = resolve(config, overrides)
    losses = changes.pop("losses", True)
    first = changes.pop("first_seed", 0)
    settings = dataclasses.replace(
        settings, agent=dataclasses.replace(settings.agent, **changes)
    )
    stored.save(settings, folder)
    scores = np.asarray(scores, float)
    members = [{"seed": first + i} for i in range(len(scores))]
    with Writer(folder) as writer:
        for i, column in enumerate(scores.T, start=1):
            # The lowest loss is the last one.
            values = {"bc_loss": 1 / i + np.zeros(len(scores))} if losses else {}
            values["q_loss"] = np.zeros(len(scores))
            writer.metrics(100 * i, members, values)
            episodes = column[:, None] + np.array([-1.0, 1.0])
            result = Evaluation(
                returns=40 * episodes,
                lengths=np.full(episodes.shape, 1000),
                peaks=episodes,
                successes=np.full(episodes.shape, np.nan),
            )
            writer.evaluation(
                evaluation_rows(
                    100 * i,
                    members,
                    result,
                    episodes,
                    dataset="jdql/walker2d/medium-v0",
                    env=settings.eval.env,
                    reference="walker2d",
                )
            )
    return folder


def fails(capsys, program, *arguments):
    """The one line on stderr of a command that fails."""
    assert program.main([str(a) for a in arguments]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    (text,) = captured.err.splitlines()
    return text


@pytest.fixture
def two_runs(tmp_path):
    ours = make_run(tmp_path / "runs" / "ours", [[10, 60, 50], [20, 30, 70]])
    bc = make_run(tmp_path / "runs" / "bc", [[10, 20, 50]], agent="diffusion_bc")
    return ours, bc


def test_report_prints_writes_and_draws(two_runs, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "report"
    assert report.main([*map(str, two_runs), f"--out={out}", "--selection=last"]) == 0
    text = capsys.readouterr().out
    assert "score on Walker2d-v5, trained on jdql/walker2d/medium-v0" in text
    ours = next(line for line in text.splitlines() if line.startswith("diffusion_ql"))
    expected = "diffusion_ql 2 300 3 60.0 +- 10.0 40.0 +- 0.0 65.0 +- 5.0"
    assert " ".join(ours.split()) == expected
    # 50 = 50 and 70 > 50.
    assert "P(diffusion_ql > diffusion_bc) = 0.75" in text
    assert "collected by jdql itself, not D4RL's" in text
    names = {path.name for path in out.iterdir()}
    assert names == {
        "report.txt",
        "learning_curves.png",
        "learning_curves.pdf",
        "profiles.png",
        "profiles.pdf",
    }
    assert (out / "report.txt").read_text().strip() in text


def test_patterns_and_folders_of_runs_are_taken_once(two_runs, tmp_path, capsys):
    runs = tmp_path / "runs"
    assert report.find_folders([str(runs), f"{runs}/*", str(two_runs[0])]) == [
        two_runs[1],
        two_runs[0],
    ]


def test_report_is_the_same_twice_and_plots_can_be_left_out(two_runs, tmp_path, capsys):
    for out in ("one", "two"):
        command = [str(tmp_path / "runs"), "--out", str(tmp_path / out), "--noplots"]
        assert report.main(command) == 0
    first, second = (tmp_path / out for out in ("one", "two"))
    assert [path.name for path in first.iterdir()] == ["report.txt"]
    text = (first / "report.txt").read_text()
    assert text == (second / "report.txt").read_text()


def test_settings_that_differ_become_methods(tmp_path, capsys):
    make_run(tmp_path / "a", [[10, 20]])
    make_run(tmp_path / "b", [[30, 40]], eta=0.5)
    command = [str(tmp_path / "?"), f"--out={tmp_path / 'out'}", "--noplots"]
    assert report.main([*command, "--by=agent"]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    titles = [block.splitlines()[0] for block in blocks[:2]]
    assert titles == ["diffusion_ql eta=1", "diffusion_ql eta=0.5"]


def test_panels_follow_by(two_runs):
    runs, _ = report.read_runs(two_runs)
    results = report.comparison.group(runs)
    (panel,) = report.panels(results, "task", 10)
    assert [line.label for line in panel.lines] == ["diffusion_ql", "diffusion_bc"]
    np.testing.assert_array_equal(panel.lines[0].mean.value, [15.0, 45.0, 60.0])
    assert [p.title for p in report.panels(results, "agent", 10)] == [
        "diffusion_ql",
        "diffusion_bc",
    ]


def test_report_mistakes_are_one_line(two_runs, tmp_path, capsys):
    assert "give run folders" in fails(capsys, report)
    assert "is no run folder" in fails(capsys, report, tmp_path / "nowhere")
    empty = tmp_path / "empty"
    stored.save(resolve("walker2d_medium"), empty)
    assert "no evaluation yet" in fails(capsys, report, empty)
    copy = make_run(tmp_path / "copy", [[1, 2]], first_seed=1)
    text = fails(capsys, report, two_runs[0], copy)
    assert "both hold seed 1" in text
    assert "drop --config.seed" in fails(capsys, report, copy, "--config.seed=3")
    assert "--by" in fails(capsys, report, copy, "--by=colour")


def test_a_run_without_evaluations_is_named_among_others(two_runs, tmp_path, capsys):
    empty = tmp_path / "empty"
    stored.save(resolve("walker2d_medium"), empty)
    command = [str(two_runs[0]), str(empty), "--noplots", f"--out={tmp_path / 'o'}"]
    assert report.main(command) == 0
    assert f"left out: {empty} has no evaluation yet" in capsys.readouterr().out


def test_missing_matplotlib_is_one_line(two_runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(report.sys.modules, "matplotlib", None)
    assert report.main([str(two_runs[0]), f"--out={tmp_path / 'o'}"]) == 1
    assert "jdql[plot]" in capsys.readouterr().err


# Model selection ----------------------------------------------------------------------


def test_selection_table_of_a_run(two_runs, capsys):
    assert evaluate.main([f"--run={two_runs[0]}", "--selection=all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = {line[:16].strip(): line[16:].split()[:4] for line in lines[2:7]}
    assert values == {
        "online": ["65.0", "5.0", "60.0", "70.0"],
        # Losses fall, and walker2d_medium has top_k = 1: the second to last.
        "offline": ["45.0", "15.0", "60.0", "30.0"],
        "offline as coded": ["45.0", "15.0", "60.0", "30.0"],
        "last": ["60.0", "10.0", "50.0", "70.0"],
        "last ten": ["40.0", "0.0", "40.0", "40.0"],
    }


def test_selection_takes_a_seed_and_another_rank(two_runs, capsys):
    command = [f"--run={two_runs[0]}", "--selection=offline", "--seed=1"]
    assert evaluate.main([*command, "--top_k=0"]) == 0
    text = capsys.readouterr().out
    assert "the evaluation of the lowest bc_loss" in text
    assert text.splitlines()[2].split()[1:4] == ["70.0", "0.0", "70.0"]


def test_all_says_what_a_short_run_cannot_have(tmp_path, capsys):
    run = make_run(tmp_path / "short", [[10]])
    assert evaluate.main([f"--run={run}", "--selection=all"]) == 0
    text = capsys.readouterr().out
    assert "offline is left out: with top_k=1 it needs 2 evaluations" in text
    assert "online" in text


def test_selection_mistakes_are_one_line(two_runs, tmp_path, capsys):
    run = f"--run={two_runs[0]}"
    text = fails(capsys, evaluate, run, "--selection=all", "--step=best")
    assert "drop --step" in text
    assert "no seed 7" in fails(capsys, evaluate, run, "--selection=all", "--seed=7")
    assert "needs at least 4" in fails(
        capsys, evaluate, run, "--selection=offline", "--top_k=3"
    )
    assert "--top_k belongs to --selection" in fails(capsys, evaluate, run, "--top_k=1")
    bare = make_run(tmp_path / "bare", [[1, 2, 3]], losses=False)
    text = fails(capsys, evaluate, f"--run={bare}", "--selection=all")
    assert "recorded none" in text
    empty = tmp_path / "empty"
    stored.save(resolve("walker2d_medium"), empty)
    text = fails(capsys, evaluate, f"--run={empty}", "--selection=all")
    assert "no evaluation yet" in text
