"""Members on several devices and in several processes, equal to those on one device."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import run
from jdql.runtime import checkpoint, distributed, processes, trained
from jdql.runtime.metrics import read_rows

FILE = """
from jdql.agents.diffusion_bc import Config as Agent
from jdql.config import Config, DataConfig, EvalConfig, TrainConfig

def get_config():
    return Config(
        name="tiny",
        agent=Agent().tiny(),
        data=DataConfig(dataset=("jdql.envs.synthetic:hopper",)),
        train=TrainConfig(steps=4, log_every=2, call=2),
        eval=EvalConfig(
            env="jdql/Synthetic-v0", env_module="jdql.envs.synthetic",
            env_kwargs={"task": "hopper", "max_episode_steps": 3}, every=4, episodes=2,
        ),
        seeds=4,
    )
"""
FILES = ("metrics.jsonl", "metrics.csv", "evaluations.jsonl")

TALK = """
import numpy as np
from jdql.runtime import processes
processes.connect()
import jax
me = jax.process_index()
assert processes.is_first() == (me == 0)
assert processes.own_members(6) == slice(3 * me, 3 * me + 3)
third = np.array([[1 / 3 + me]])  # 64 bits survive
np.testing.assert_array_equal(processes.gather(third), [[1 / 3], [1 / 3 + 1]])
assert processes.any_of(me == 1) and not processes.any_of(False)
assert processes.first_does(lambda: f"from {me}") == "from 0"
order = []
assert processes.first_ahead(lambda: me) == me
def fail():
    if me == 1:
        raise OSError("no disk")
try:
    processes.together(fail)
except OSError as error:
    print("own:", error, flush=True)
except ValueError as error:
    print("other:", error, flush=True)
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "tiny.py").write_text(FILE)
    return "--config=tiny.py"


def cache() -> str:
    """The processes share the tests' compilations."""
    return f"--config.run.compilation_cache={jax.config.jax_compilation_cache_dir}"


def start(arguments: list[str], devices: int, **environment: str) -> subprocess.Popen:
    flags = (
        f"--xla_force_host_platform_device_count={devices} "
        "--xla_cpu_multi_thread_eigen=false"
    )
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "XLA_FLAGS": flags, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_pair(arguments: list[str]) -> list[subprocess.Popen]:
    """Two processes of two devices each, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    names = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [start(arguments, 2, **names, JAX_PROCESS_ID=str(i)) for i in range(2)]


def on_one_device(monkeypatch, *arguments: str) -> None:
    mesh = distributed.member_mesh
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "configure", lambda *_: None)
        patch.setattr(
            distributed, "member_mesh", lambda members: mesh(members, jax.devices()[:1])
        )
        assert run.main(list(arguments)) == 0


def assert_same(one: str, other: str) -> None:
    """The records of two runs, and the states of training in their checkpoints."""
    for name in FILES:
        assert Path(one, name).read_text() == Path(other, name).read_text(), name
    first, second = (checkpoint.metadata(f"{f}/checkpoints") for f in (one, other))
    assert first == second
    a, b = (trained.states(trained.open_run(folder)) for folder in (one, other))
    chex.assert_trees_all_equal(a, b)


def test_eight_devices_equal_one(config, monkeypatch):
    options = [config, "--config.seeds=8", cache()]
    launcher = ["-m", "experiments.run", *options, "--config.run.dir=eight"]
    process = start(launcher, devices=8)
    on_one_device(monkeypatch, *options, "--config.run.dir=one")
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert "on 8 device(s)" in out
    assert_same("one", "eight")


def test_two_processes_equal_one_device(config, monkeypatch):
    """Stopped by a signal that one of them gets, and resumed on one device."""
    launcher = ["-m", "experiments.run", "--distributed", config]
    endless = ["--config.run.dir=two", "--config.train.steps=1000000"]
    first, second = start_pair([*launcher, *endless, cache()])
    rows, deadline = Path("two/evaluations.jsonl"), time.monotonic() + 300
    while not (rows.exists() and read_rows(rows)):
        assert first.poll() is None, first.communicate()[1]
        assert second.poll() is None, second.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second.send_signal(signal.SIGTERM)
    outs = [process.communicate(timeout=300) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outs
    assert "on 4 device(s)" in outs[0][0]
    assert "resume: python -m experiments.run --config=two" in outs[0][0]
    assert "update" not in outs[1][0]  # the first alone talks
    stopped = checkpoint.steps("two/checkpoints")[-1]
    assert f"stopped at update {stopped};" in outs[0][0]
    steps = f"--config.train.steps={(stopped // 4 + 1) * 4}"
    on_one_device(monkeypatch, "--config=two", steps)
    on_one_device(monkeypatch, config, "--config.run.dir=one", steps)
    assert_same("one", "two")


def test_processes_tell_each_other(tmp_path):
    Path("talk.py").write_text(TALK)
    outs = [process.communicate(timeout=200) for process in start_pair(["talk.py"])]
    said = ["".join(x for x in out if x != "").strip() for out, _ in outs]
    assert "other: process 1 failed: OSError: no disk" in said[0], outs
    assert "own: no disk" in said[1], outs


def mean_squares(seed, turns: int):
    """Sums (turns, 8) that XLA adds up in another order in another program."""
    mix = np.linspace(-1, 1, 256, dtype=np.float32).reshape(16, 16)

    def turn(step, _):
        key = jax.random.fold_in(jax.random.key(seed), step)
        keep_key, noise_key = jax.random.split(key)
        keep = jax.random.bernoulli(keep_key, 0.9, (8, 16))
        x = jax.random.normal(noise_key, (8, 16)) @ mix + 0.1
        kept = jnp.where(keep, x / 0.9, 0.0)
        return step + 1, jnp.mean(kept * kept, axis=-1)

    return distributed.scan(turn, jnp.int32(0), turns)[1]


def sums(seeds, turns: int):
    """`mean_squares` of each of the seeds, on one device."""
    mesh = distributed.member_mesh(len(seeds), jax.devices()[:1])
    mapped = distributed.map_members(lambda seed, _: mean_squares(seed, turns), mesh)
    return np.asarray(jax.jit(mapped)(np.asarray(seeds, np.uint32), ()))


def test_one_member_rounds_as_several():
    together = sums([0, 1, 2], 3)
    np.testing.assert_array_equal(sums([1], 3), together[1:2])
    np.testing.assert_array_equal(sums([1, 2], 3), together[1:])


def test_one_turn_of_a_loop_rounds_as_several():
    three = sums([0, 1], 3)
    np.testing.assert_array_equal(sums([0, 1], 1), three[:, :1])
    np.testing.assert_array_equal(sums([0, 1], 2), three[:, :2])


def test_scan_is_that_of_jax():
    def turn(total, i):
        return total + i, {"total": total, "square": i * i}

    total, outputs = jax.jit(lambda: distributed.scan(turn, jnp.int32(5), 4))()
    assert total == 5 + 0 + 1 + 2 + 3
    np.testing.assert_array_equal(outputs["total"], [5, 5, 6, 8])
    np.testing.assert_array_equal(outputs["square"], [0, 1, 4, 9])


@pytest.mark.parametrize(
    ("members", "count", "message"),
    [(5, 4, "take 4 or 8"), (3, 4, "take 4 "), (9, 2, "take 8 or 10")],
)
def test_members_that_do_not_divide_are_refused(members, count, message, monkeypatch):
    owners = [process for process in range(count) for _ in range(2)]
    devices = [SimpleNamespace(process_index=process) for process in owners]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    with pytest.raises(ValueError, match=message) as error:
        distributed.member_mesh(members)
    assert "\n" not in str(error.value)


def test_one_process_takes_the_devices_that_divide():
    assert distributed.member_mesh(4).size == 2
    assert distributed.member_mesh(3).size == 1


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "srun or mpirun"),
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID must"),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "a:1",
                "JAX_NUM_PROCESSES": "x",
                "JAX_PROCESS_ID": "0",
            },
            "are numbers",
        ),
    ],
)
def test_wrong_surroundings_are_told_in_one_line(monkeypatch, variables, message):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message) as error:
        processes.connect()
    assert "\n" not in str(error.value)
