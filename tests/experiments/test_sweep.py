"""Jobs of several configs, on submitit's local executor."""

from __future__ import annotations

import sys

import pytest

from experiments import sweep
from experiments.launch.overrides import split_overrides
from jdql.runtime import checkpoint, distributed
from jdql.runtime.metrics import read_rows

# Imported before any test runs: submitit's set-up of logging closes absl's handler, and
# with it pytest's stderr where a test has put another in its place by then.
try:
    import submitit
except ModuleNotFoundError:
    submitit = None
needs_submitit = pytest.mark.skipif(submitit is None, reason="needs the sweep extra")


@needs_submitit
def test_a_job_trains_in_its_folder_and_goes_on_when_restarted(capsys, monkeypatch):
    command = ["--configs=bandit:smoke", "--folder=all", "--config.train.steps=2"]
    assert sweep.main(command) == 0
    printed = capsys.readouterr().out
    assert "all/bandit-smoke" in printed
    assert "ended" in printed
    assert checkpoint.steps("all/bandit-smoke/checkpoints") == [2]
    # The same job once more, as after a preemption, finds the work done.
    monkeypatch.setattr(distributed, "configure", lambda *_: None)
    _, overrides = split_overrides(["--config.train.steps=2"])
    (job,) = sweep.make_jobs(["bandit:smoke"], sweep.Path("all"), overrides)
    rows = read_rows("all/bandit-smoke/metrics.jsonl")
    job()
    assert "resuming at update 2" in capsys.readouterr().out
    assert read_rows("all/bandit-smoke/metrics.jsonl") == rows
    assert job.checkpoint().function == job


def test_options_go_to_every_job(tmp_path):
    _, overrides = split_overrides(["--config.agent.eta=2", "--config.run.tensorboard"])
    jobs = sweep.make_jobs(
        ["bandit", "hopper_medium:quick"], tmp_path, overrides, "agent.lr=1e-3,1e-4"
    )
    assert [job.config for job in jobs] == ["bandit", "hopper_medium:quick"]
    assert [job.folder for job in jobs] == [
        str(tmp_path / "bandit"),
        str(tmp_path / "hopper_medium-quick"),
    ]
    for job in jobs:
        assert job.arguments == (
            "--config.agent.eta=2",
            "--config.run.tensorboard",
            "--sweep=agent.lr=1e-3,1e-4",
        )


@needs_submitit
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --configs"),
        (["--configs=bandit,hoper_medium"], "hopper_medium"),
        (["--configs=bandit", "--config.agent.etaa=1"], "agent.eta"),
        (["--configs=bandit", "--config.run.dir=x"], "give --folder"),
        (["--configs=bandit,bandit"], "two of --configs"),
        (["--configs=bandit", "--sweep=agent.diffusion_steps=2,5"], "no float"),
        (["--configs=bandit", "--parameters=nodes"], "NAME=VALUE"),
        (["--configs=bandit", "--parameters=gpus=1"], "submitit says"),
        (["--configs=bandit", "--cluster=slurm"], "submitit says"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_queued(arguments, message, capsys):
    assert sweep.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(sweep.Path().glob("runs/bandit*"))


def test_without_submitit_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert sweep.main(["--configs=bandit"]) == 1
    assert "pip install 'jdql[sweep]'" in capsys.readouterr().err
