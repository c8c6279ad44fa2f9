"""The launcher: every config's smoke variant, resuming, stopping, mistakes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import evaluate, run
from experiments.configs.tasks import TASKS
from experiments.launch.names import agent_names, system_names, task_names
from experiments.launch.overrides import split_overrides
from experiments.launch.resolve import resolve
from jdql.agents.base import required
from jdql.runtime import checkpoint, distributed
from jdql.runtime.metrics import read_rows

pytestmark = pytest.mark.usefixtures("unoptimised")

CLONING = "--config.agent=diffusion_bc"
# Diffusion-QL on one task of each family, every other system on its own task, and the
# other tasks with what compiles soonest: a task does not depend on the system.
OF_FAMILY = {TASKS[name].family: name for name in task_names()}.values()
LAUNCHES = [
    *((task, "" if task in OF_FAMILY else CLONING) for task in task_names()),
    *((system, "") for system in system_names() if system != "diffusion_ql"),
    *(
        ("hopper_medium", f"--config.agent={agent}")
        for agent in agent_names()
        if agent not in system_names()
    ),
]
SYNTHETIC = {
    *(
        name
        for name in task_names()
        if name.startswith(("antmaze", "pen", "kitchen", "point", "pusht"))
    ),
    *(name for name in task_names() if name.endswith("_replay")),
    "halfcheetah_medium_expert",
}


@pytest.fixture(autouse=True)
def _one_backend(monkeypatch):
    """Several runs in one process: the devices are settled already."""
    monkeypatch.setattr(distributed, "configure", lambda *_: None)


def train(name: str, *arguments: str) -> int:
    return run.main([f"--config={name}", "--config.run.dir=r", *arguments])


def earlier_runs(name: str) -> list[str]:
    """Trains what a system builds on; the variant of that name is such a run."""
    given = required(resolve(name).agent)
    for one in given:
        folder = f"--config.run.dir={one}"
        assert run.main([f"--config={name}:{one}:smoke", folder]) == 0
    return [f"--config.given.{one}={one}" for one in given]


@pytest.mark.parametrize(("name", "agent"), LAUNCHES)
def test_every_task_and_every_system_runs(name, agent, capsys):
    arguments = [*filter(None, [agent]), *earlier_runs(name)]
    capsys.readouterr()
    assert train(f"{name}:smoke", *arguments) == 0
    printed = capsys.readouterr().out
    rows = read_rows("r/evaluations.jsonl")
    assert [(row["step"], row["seed"]) for row in rows] == [
        (2, 0),
        (2, 1),
        (4, 0),
        (4, 1),
    ]
    source = rows[0]["dataset"]
    assert ("synthetic" in source) == (name in SYNTHETIC)
    assert checkpoint.metadata("r/checkpoints")["dataset"] == source
    assert {row["step"] for row in read_rows("r/metrics.jsonl")} == {2, 4}
    assert "what it is" in printed  # the score table
    assert f"trained on {source}" in printed
    assert "--run=r" in printed
    # The line that goes on with the run is one that works.
    line = next(x for x in printed.splitlines() if x.startswith("train on:"))
    assert "--config=r --config.train.steps=8" in line


def test_a_resumed_run_equals_an_unbroken_one():
    arguments = ["--config=bandit:smoke", "--config.train.steps=8"]
    assert run.main([*arguments, "--config.run.dir=whole"]) == 0
    assert run.main(["--config=bandit:smoke", "--config.run.dir=broken"]) == 0
    assert run.main(["--config=broken", "--config.train.steps=8"]) == 0
    for file in ("metrics.jsonl", "evaluations.jsonl"):
        whole, broken = read_rows(f"whole/{file}"), read_rows(f"broken/{file}")
        assert whole == broken
    assert len(Path("broken/starts.jsonl").read_text().splitlines()) == 2


def test_evaluation_gives_the_scores_of_training(capsys):
    assert train("hopper_medium:smoke") == 0
    recorded = read_rows("r/evaluations.jsonl")
    config = resolve("r")
    last = evaluate.evaluate(config, Path("r"))
    assert [row["returns"] for row in last] == [r["returns"] for r in recorded[-2:]]
    assert [row["scores"] for row in last] == [r["scores"] for r in recorded[-2:]]
    one = evaluate.evaluate(config, Path("r"), seed=1, step="2")
    assert [row["returns"] for row in one] == [recorded[1]["returns"]]
    best = evaluate.evaluate(config, Path("r"), step="best")
    for row in best:
        mine = [r["score_mean"] for r in recorded if r["seed"] == row["seed"]]
        assert row["score_mean"] == max(mine)
    capsys.readouterr()
    assert evaluate.main(["--run=r", "--step=best", "--episodes=3"]) == 0
    printed = capsys.readouterr().out
    assert "3 episode(s) a seed" in printed
    assert "jdql/hopper/medium-2000-v0" in printed
    assert "score: 0 = return -20.2723" in printed
    other = ["--config.agent.sampler=ddim", "--config.agent.candidates=1"]
    assert evaluate.main(["--run=r", "--seed=1", "--timed", *other]) == 0
    printed = capsys.readouterr().out
    returns = sum(last[1]["returns"]) / 2
    assert f"return {returns:10.3f}" not in printed  # it plays otherwise
    assert "a plan of 1 action(s) takes" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run=r", "--seed=9"], "no seed 9"),
        (["--run=r", "--step=lst"], "last, best or a number"),
        (["--run=r", "--step=3"], "was not kept"),
        (["--run=r", "--episodes=0"], "positive"),
        (["--run=r", "--config.agent.eta=1"], "eta cannot change after training"),
        (["--run=r", "--config.train.steps=1"], "drop --config.train.steps"),
        (["--run=r", "--config.agent.candidates=0"], "candidates must be at least 1"),
        (["--run=none"], "holds no run"),
        ([], "--run=FOLDER"),
    ],
)
def test_mistakes_of_evaluation(arguments, message, capsys):
    if not Path("r").exists() and "--run=r" in arguments:
        assert train("bandit:smoke") == 0
        capsys.readouterr()
    assert_one_line(evaluate.main(arguments), message, capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=bandit:smoke", "--config.eval.env=Hoper-v5"], "Hopper-v5"),
        (["--config=bandit:smoke", "--config.data.dataset=none.npz"], "none.npz"),
        (["--config=bandit:smoke", "--config.data.reward=nrm"], "nrm"),
        (["--config=bandit:smoke", "--config.agent.schedule=vpp"], "vpp"),
        (["--config=bandit:smoke", "--config.data.source=lokal"], "lokal"),
        (["--config=bandit:smoke", "--config.train.precision=tf32"], "needs a GPU"),
        (["--config=bandit:smoke", "--confg=x"], "Did you mean: config"),
        (["--config=bandit:smoke", "stray"], "stray"),
        ([], "--list"),
    ],
)
def test_mistakes_leave_no_folder(arguments, message, capsys):
    assert_one_line(run.main(arguments), message, capsys)
    assert not Path("runs").exists()


def assert_one_line(status: int, message: str, capsys) -> None:
    printed = capsys.readouterr()
    assert status == 1
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_debugging_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("JDQL_DEBUG", "1")
    with pytest.raises(ValueError, match="there is no system, task or variant"):
        run.main(["--config=nothing"])


def test_a_defect_keeps_its_traceback(monkeypatch):
    # A ValueError, but not one that this project words.
    monkeypatch.setattr(run, "resolve", lambda *_: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        run.main(["--config=bandit"])


def test_other_data_is_not_taken_for_the_runs(capsys):
    assert train("bandit:smoke") == 0
    folder = Path("r/config.json")
    values = json.loads(folder.read_text())
    values["data"]["dataset"] = ["jdql.envs.bandit:cloning"]
    folder.write_text(json.dumps(values))
    capsys.readouterr()
    status = run.main(["--config=r"])
    error = capsys.readouterr().err
    assert status == 1
    assert "was trained on jdql.envs.bandit:dataset" in error


def test_the_list_shows_what_there_is(capsys):
    assert run.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("mujoco/walker2d/medium-v0" in x and "Walker2d-v5" in x for x in lines)
    assert any(line.startswith("edp ") for line in lines)
    assert run.main(["--list", "--config=fql"]) == 0
    assert "python -m experiments.run --config=fql\n" in capsys.readouterr().out


def test_a_signal_saves_and_the_printed_line_resumes():
    """In processes of their own, as a user starts them."""
    command = [sys.executable, "-m", "experiments.run"]
    first = [*command, "--config=bandit:smoke", "--config.run.dir=r"]
    long = ["--config.train.steps=1000000", "--config.eval.every=1000000"]
    process = subprocess.Popen([*first, *long], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not Path("r/metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    line = next(x for x in printed.splitlines() if "resume: " in x)
    stopped = checkpoint.steps("r/checkpoints")[-1]
    assert f"stopped at update {stopped};" in line
    resume = line.split("resume: ")[1].split()[1:]  # without "python"
    total = stopped + 2
    done = subprocess.run(
        [sys.executable, *resume, f"--config.train.steps={total}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"resuming at update {stopped}" in done.stdout
    assert checkpoint.steps("r/checkpoints")[-1] == total


def test_the_python_of_the_readme(monkeypatch):
    """At the size of a smoke test; a stumbling policy ends its episode soon."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    text = (Path(run.__file__).parents[1] / "README.md").read_text()
    (code,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(code.replace(":quick", ":smoke"), names)
    assert names["ended"] or names["late"]
    assert names["environment"].action_space.contains(names["action"])
    assert names["policy"].config.agent.eta == 0.5
    assert [row["seed"] for row in names["rows"]] == [1, 1]
    assert Path("curve.png").read_bytes()[:4] == b"\x89PNG"


def test_seeds_default_to_the_devices():
    config = resolve("bandit:smoke", split_overrides(["--config.seeds=none"])[1])
    assert config.seeds is None
    assert train("bandit:smoke", "--config.seeds=none") == 0
    assert resolve("r").seeds == distributed.default_members()


def test_other_settings_start_without_compiling(monkeypatch, tmp_path):
    """The second start, with other floats and another seed, finds every program."""
    import jax
    from jax._src import compilation_cache, monitoring

    seen: list[str] = []
    monitoring.register_event_listener(lambda event, **_: seen.append(event))
    before = jax.config.jax_compilation_cache_dir
    compilation_cache.reset_cache()  # it is bound to the folder of before
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    def misses(*arguments: str) -> int:
        jax.clear_caches()  # as in a process of its own
        seen.clear()
        assert run.main(["--config=bandit:smoke", *arguments]) == 0
        assert any(event.endswith("cache_hits") for event in seen) == bool(arguments)
        return sum(event.endswith("cache_misses") for event in seen)

    try:
        assert misses() > 5
        other = [f"--config.agent.{name}=0.3" for name in ("eta", "lr", "temperature")]
        assert misses(*other, "--config.agent.tau=0.1", "--config.seed=5") == 0
    finally:
        monitoring.unregister_event_listener(monitoring.get_event_listeners()[-1])
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", before)
