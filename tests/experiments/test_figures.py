"""The command that draws the paper's experiments, end to end at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import figures
from experiments.launch.names import agent_names
from experiments.launch.overrides import Override
from experiments.launch.resolve import resolve
from experiments.studies.ablations import agents, eta, runs, speed, steps
from experiments.studies.bandit import experiment, panels
from jdql.envs import bandit
from jdql.runtime import distributed, stored
from jdql.runtime.metrics import read_rows

TINY = (
    "--config=bandit",
    "--config.train.steps=4",
    "--config.train.log_every=1",
    "--config.eval.every=2",
    "--config.eval.episodes=2",
    "--config.agent.hidden=8,8",
    "--config.agent.batch_size=4",
    "--config.agent.candidates=2",
    "--config.agent.diffusion_steps=2",
)
PNG, PDF = b"\x89PNG", b"%PDF"


@pytest.fixture(autouse=True)
def _one_backend(monkeypatch):
    """Several runs in one process: the devices are settled already."""
    monkeypatch.setattr(distributed, "configure", lambda *_, **__: None)


def drawn(stem: Path) -> bool:
    png, pdf = stem.with_suffix(".png"), stem.with_suffix(".pdf")
    return png.read_bytes()[:4] == PNG and pdf.read_bytes()[:4] == PDF


def test_help_needs_neither_jax_nor_matplotlib():
    code = (
        "import sys; from experiments import figures; figures.main(['--help']); "
        "sys.exit(bool({'jax', 'matplotlib', 'gymnasium'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--full" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "bandit|steps|eta|agents|plans|returns"),
        (["bandits"], "bandits"),
        (["bandit", "--config=walker2d_medium"], "its methods are fixed"),
        (["eta", "--config=walker2"], "walker2d_medium"),
        (["eta", "--config=bandit", "--config.agent=edp"], "--config.agent"),
        (["steps", "--seeds=0"], "seeds"),
    ],
)
def test_a_mistake_is_one_line(arguments, part, capsys):
    assert figures.main(arguments) == 1
    error = capsys.readouterr().err
    assert part in error
    assert len(error.splitlines()) == 1


# The bandit -----------------------------------------------------------------------


@pytest.mark.usefixtures("unoptimised")
def test_the_bandit_is_drawn_once(monkeypatch, capsys):
    monkeypatch.setattr(panels, "STEPS", (2,))
    monkeypatch.setattr(panels, "DRAWN", 50)
    tiny = panels.Budget(3, 3, 3, lr=1e-3, annealed=True)
    monkeypatch.setattr(panels, "DEFAULT", tiny)
    # One baseline of each figure; what is special of each is tested by itself.
    of = {"cloning": panels.cloning, "improving": panels.improving}
    monkeypatch.setattr(panels, "cloning", lambda *a: of["cloning"](*a)[2:])
    monkeypatch.setattr(panels, "improving", lambda *a: of["improving"](*a)[1:2])
    command = ["bandit", "--out=f", "--runs=r", "--seed=5"]
    assert figures.main(command) == 0
    first = capsys.readouterr().out
    for name in ("bandit_cloning", "bandit_improving", "bandit_steps"):
        assert drawn(Path("f") / name)
    record = json.loads(Path("f/bandit.json").read_text())
    assert record["seeds"] == [5, 6]
    assert len(record["shares"]) == 4
    assert np.shape(record["shares"]["BC-MMD"]) == (2, 4)
    assert "run: r/bandit/bcq-3, 2 seeds from 5" in first
    assert figures.main([*command, "--shifted"]) == 0
    again = capsys.readouterr().out
    assert again.count("trained already") == 3  # all but one
    assert "run: r/bandit/bcq_shifted-3, 2 seeds from 5" in again


def test_the_claims_of_the_paper():
    assert experiment.clones(np.array([0.25, 0.2, 0.3, 0.24]))
    assert not experiment.clones(np.array([0.25, 0.19, 0.3, 0.25]))
    assert experiment.improves(np.array([0.0, 0.0, 0.0, 0.91]))
    assert not experiment.improves(np.array([0.91, 0.0, 0.0, 0.0]))


def test_the_table_has_mean_and_range():
    panel = panels.cloning(panels.DEFAULT)[0]
    centres = np.array([mode.centre for mode in bandit.MODES], np.float32)
    one = np.repeat(centres, 2, axis=0)  # an eighth each twice
    other = np.repeat(centres[3:], 8, axis=0)
    actions = np.stack([one, other])
    shares = np.array([bandit.mode_shares(a) for a in actions])
    result = experiment.Result(panel, actions, shares)
    text = experiment.table("Title", [result], experiment.clones)
    assert "12.5 (0.0 to 25.0)" in text
    assert "62.5 (25.0 to 100.0)" in text
    assert "25 +- 5 % on every mode: none" in text


def test_full_is_the_authors_size():
    panel = panels.diffusion_improving(50, panels.FULL)
    assert panel.updates == 100_000
    agent = panel.agent
    assert agent.decay_steps is None
    assert (agent.eta, agent.lr, agent.critic_lr) == (2.5, 3e-4, 3e-4)
    assert (agent.batch_size, agent.hidden, agent.step_dim) == (100, (128,) * 3, 4)
    assert agent.grad_norm is None


# The ablations --------------------------------------------------------------------


@pytest.mark.usefixtures("unoptimised")
def test_steps_are_trained_timed_and_drawn_once(monkeypatch, capsys):
    monkeypatch.setattr(steps, "STEPS", (3,))
    monkeypatch.setattr(speed, "CALLS", 2)
    monkeypatch.setattr(speed, "LENGTH", 1)
    assert figures.main(["steps", "--out=f", "--runs=r", *TINY]) == 0
    assert drawn(Path("f/steps"))
    folder = Path("r/steps/bandit-T3-4")
    assert stored.load(folder).agent.diffusion_steps == 3
    measured = speed.read(folder)
    assert measured["fastest"] <= measured["milliseconds"] <= measured["slowest"]
    rows = [row for row in read_rows(folder / "evaluations.jsonl") if row["step"] == 4]
    each = " ".join(f"{row['score_mean']:.1f}" for row in rows)
    printed = capsys.readouterr().out
    line = next(x for x in printed.splitlines() if x.startswith("bandit") and each in x)
    assert f"{measured['milliseconds']:.2f}" in printed
    assert line
    assert figures.main(["steps", "--out=f", "--runs=r", *TINY]) == 0
    assert "trained already" in capsys.readouterr().out
    assert len((folder / "starts.jsonl").read_text().splitlines()) == 1


def test_the_sizes_of_the_step_runs(tmp_path):
    small = steps.configs("walker2d_medium", range(3, 5), tmp_path, full=False)
    assert [c.agent.diffusion_steps for c in small] == [2, 5, 10, 20]
    assert {(c.train.steps, c.seed, c.seeds) for c in small} == {(10_000, 3, 2)}
    assert len({c.run.dir for c in small}) == 4
    full = steps.configs("walker2d_medium", range(5), tmp_path, full=True)
    assert {c.train.steps for c in full} == {2_000_000}


@pytest.mark.usefixtures("unoptimised")
def test_eta_is_swept_in_one_run(capsys):
    assert figures.main(["eta", "--out=f", "--runs=r", *TINY, "--seeds=1"]) == 0
    assert drawn(Path("f/eta"))
    assert "wrote f/eta.png" in capsys.readouterr().out
    etas, curves = eta.read(Path("r/eta/bandit-eta-4"))
    np.testing.assert_array_equal(etas, eta.ETAS)
    assert [curve.values.shape for curve in curves] == [(7, 1)] * 3
    # One seed, one batch: the first cloning loss knows no eta, later ones do.
    rows = read_rows("r/eta/bandit-eta-4/metrics.jsonl")
    first = [row["bc_loss"] for row in rows if row["step"] == 1]
    np.testing.assert_allclose(first, first[0], rtol=1e-5)
    last = [row["bc_loss"] for row in rows if row["step"] == 4]
    assert len(set(last)) == 7
    assert figures.main(["eta", "--out=f", "--runs=r", *TINY, "--seeds=1"]) == 0
    assert "trained already" in capsys.readouterr().out


@pytest.mark.usefixtures("unoptimised")
def test_agents_are_trained_timed_and_drawn(monkeypatch, capsys):
    monkeypatch.setattr(speed, "CALLS", 2)
    monkeypatch.setattr(speed, "LENGTH", 1)
    monkeypatch.setattr(speed, "DECISIONS", 3)
    tiny = [flag for flag in TINY if "candidates" not in flag]  # cloning has none
    wanted = ["--agents=diffusion_bc", "--out=f", "--runs=r"]
    assert figures.main(["agents", *wanted, *tiny]) == 0
    assert drawn(Path("f/agents"))
    printed = capsys.readouterr().out
    found = agents.entry("diffusion_bc", Path("r/agents/bandit-diffusion_bc-4"))
    assert len(found.scores) == 2
    assert found.update > 0 < found.decision
    assert f"{found.update:.2f}" in printed
    assert "bandit-diffusion_bc: " in printed


def test_every_agent_has_settings_for_every_task_of_the_table(tmp_path):
    for task in agents.TASKS:
        names = agent_names()
        planned = agents.configs(task, names, range(2), tmp_path, full=False)
        assert [type(c.agent).__module__ for c in planned] == [
            f"jdql.agents.{name}" for name in names
        ]
        assert len({c.eval.env for c in planned}) == 1
        assert len({c.data.dataset for c in planned}) == 1
        assert {c.train.steps for c in planned} == {20_000}


@pytest.mark.parametrize("task", agents.TASKS)
def test_every_agent_has_its_settings_for_the_task(task):
    # Diffusion-QL's are those of the task's own config.
    assert agents.config_of("diffusion_ql", task).agent == resolve(task).agent
    assert agents.config_of("idql", task).agent == resolve(f"idql:{task}").agent


def test_other_settings_need_another_folder(tmp_path):
    config = eta.config_of("bandit", range(2), tmp_path, full=False)
    stored.save(config, config.run.dir)
    other = [Override("agent.tau", "0.5")]
    changed = eta.config_of("bandit", range(2), tmp_path, full=False, overrides=other)
    with pytest.raises(ValueError, match="--runs=FOLDER"):
        runs.trained(changed, print)


def test_an_unfinished_run_stops_the_command(monkeypatch, capsys):
    monkeypatch.setattr(runs.run, "launch", lambda config: None)  # as after Ctrl-C
    assert figures.main(["eta", "--out=f", "--runs=r", *TINY]) == 130
    assert "the same command goes on" in capsys.readouterr().out
    assert not Path("f").exists()


def test_the_size_is_the_users_to_change(tmp_path):
    wanted = [Override("train.steps", "30"), Override("eval.every", "7")]
    config = eta.config_of(
        "hopper_medium", range(2), tmp_path, full=False, overrides=wanted
    )
    assert (config.train.steps, config.eval.every) == (30, 7)
    assert config.run.dir == str(tmp_path / "hopper_medium-eta-30")


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_metrics_are_means_over_the_last_tenth(tmp_path):
    rows = [
        {"step": step, "seed": seed, "agent.eta": value, "q": 100 * value + seed + step}
        for step in range(1, 21)
        for value in (0.0, 1.0)
        for seed in (0, 1)
    ]
    write(tmp_path / "metrics.jsonl", rows)
    found = runs.final_metrics(tmp_path, ("q",))
    assert [(row["agent.eta"], row["seed"]) for row in found] == [
        (0.0, 0),
        (0.0, 1),
        (1.0, 0),
        (1.0, 1),
    ]
    # Steps 19 and 20.
    assert [row["q"] for row in found] == [19.5, 20.5, 119.5, 120.5]


def test_eta_curves_put_every_member_in_its_place(tmp_path):
    members = [(value, seed) for value in (2.0, 0.0) for seed in (0, 1)]
    write(
        tmp_path / "metrics.jsonl",
        [
            {"step": 1, "seed": s, "agent.eta": e, "bc_loss": e + s, "q_mean": e - s}
            for e, s in members
        ],
    )
    write(
        tmp_path / "evaluations.jsonl",
        [
            {
                "step": step,
                "seed": s,
                "agent.eta": e,
                "score_mean": 10 * e + s + 100 * step,
                "return_mean": 0.0,
            }
            for step in (0, 1)
            for e, s in members
        ],
    )
    etas, (cloning, q, score) = eta.read(tmp_path)
    np.testing.assert_array_equal(etas, [0.0, 2.0])
    np.testing.assert_array_equal(cloning.values, [[0, 1], [2, 3]])
    np.testing.assert_array_equal(q.values, [[0, -1], [2, 1]])
    np.testing.assert_array_equal(score.values, [[100, 101], [120, 121]])
