"""Checkpoints: kept steps, every way of restoring, and crashes."""

from __future__ import annotations

import functools
import os
import resource
import signal
import subprocess
import sys
import textwrap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.runtime import checkpoint

S = 3
REST = {"learned": {"w": np.ones(S)}, "best": {"w": np.ones(S)}, "metadata": {}}


class State(NamedTuple):
    step: jax.Array
    weights: dict
    key: jax.Array


def make_state(value=0.0):
    return State(
        step=jnp.full(S, 7, jnp.int32),
        weights={"w": jnp.arange(S * 4, dtype=jnp.float32).reshape(S, 4) + value},
        key=jax.vmap(jax.random.key)(jnp.arange(S)),
    )


def save(checkpoints, step, value=0.0, score=None, **metadata):
    state = make_state(value)
    best = jax.tree.map(lambda w: w + 100, state.weights)
    checkpoints.save(
        step,
        train=state,
        learned=state.weights,
        best=best,
        metadata=metadata,
        score=score,
    )


def abstract():
    return jax.eval_shape(make_state)


def assert_same(actual, expected):
    def data(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(data(a), data(b)), actual, expected
    )


def test_everything_comes_back_as_it_was(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 10, score=1.5, config={"eta": 1.0, "hidden": (256, 256)})
    state = checkpoint.restore_train(tmp_path, abstract())
    assert_same(state, make_state())
    assert state.weights["w"].dtype == jnp.float32
    assert checkpoint.metadata(tmp_path) == {
        "config": {"eta": 1.0, "hidden": [256, 256]},
        "step": 10,
        "score": 1.5,
    }


def test_the_latest_two_and_the_best_are_kept(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        for step, score in ((1, 5.0), (2, 9.0), (3, 7.0), (4, None), (5, np.nan)):
            save(checkpoints, step, score=score)
        checkpoints.wait()
        assert checkpoint.steps(tmp_path) == [2, 4, 5]
    with checkpoint.Checkpoints(tmp_path) as checkpoints:  # known again after opening
        save(checkpoints, 6, score=8.0)
        save(checkpoints, 7, score=9.5)
        save(checkpoints, 8, score=1.0)
    assert checkpoint.steps(tmp_path) == [7, 8]


def test_what_is_learned_is_last_best_or_of_a_kept_step(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, value=1.0)
        save(checkpoints, 2, value=2.0)
    shapes = abstract().weights
    restore = functools.partial(checkpoint.restore_learned, tmp_path, shapes)
    assert_same(restore(), make_state(2.0).weights)
    assert_same(restore("best"), make_state(102.0).weights)
    assert_same(restore(1), make_state(1.0).weights)
    assert_same(restore("1"), make_state(1.0).weights)
    one = restore("last", members=[2])
    np.testing.assert_array_equal(one["w"][0], make_state(2.0).weights["w"][2])


def test_what_is_learned_needs_no_train_item(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
    for path in (tmp_path / "1" / "train").rglob("*"):
        if path.is_file():
            path.unlink()
    restored = checkpoint.restore_learned(tmp_path, abstract().weights)
    assert_same(restored, make_state().weights)


def test_keys_are_restored_and_nothing_evaluated_has_no_best(tmp_path):
    tree = {"key": make_state().key, "w": jnp.ones((S, 2))}
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, train=tree, learned=tree, metadata={})
    shapes = jax.eval_shape(lambda: tree)
    one = checkpoint.restore_learned(tmp_path, shapes, members=[1])
    assert_same(one["key"][0], jax.random.key(1))
    with pytest.raises(ValueError, match="was never evaluated"):
        checkpoint.restore_learned(tmp_path, shapes, "best")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda d, p: checkpoint.restore_learned(d, p, 7),
            r"step 7 .*there are \[1, 2\]",
        ),
        (
            lambda d, p: checkpoint.restore_learned(d, p, "first"),
            "last, best or a number",
        ),
        (lambda d, p: checkpoint.restore_learned(d, p, members=[3]), "it has 3"),
        (
            lambda d, p: checkpoint.restore_learned(
                d, {"w": p["w"].update(shape=(5, 4))}
            ),
            "does not fit this configuration",
        ),
        (
            lambda d, p: checkpoint.restore_learned(d, {"v": p["w"]}),
            "does not fit this configuration",
        ),
    ],
)
def test_mistakes_get_one_line(tmp_path, call, message):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
    with pytest.raises(ValueError, match=message) as error:
        call(tmp_path, abstract().weights)
    assert "\n" not in str(error.value)


def test_no_checkpoint_is_one_line(tmp_path):
    assert checkpoint.steps(tmp_path / "nowhere") == []
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoint.restore_train(tmp_path / "nowhere", abstract())
    assert not (tmp_path / "nowhere").exists()


def test_metadata_that_is_not_json_is_one_line(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    with checkpoints, pytest.raises(ValueError, match="must be JSON"):
        save(checkpoints, 1, config=object())
    assert checkpoint.steps(tmp_path) == []


def test_a_step_can_be_saved_again(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, value=1.0)
        save(checkpoints, 1, value=2.0)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, value=3.0)
    assert_same(checkpoint.restore_train(tmp_path, abstract()), make_state(3.0))
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_resuming_deletes_what_came_later(tmp_path):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 10)
        save(checkpoints, 20)
    with checkpoint.Checkpoints(tmp_path, resume_step=10) as checkpoints:
        assert checkpoint.steps(tmp_path) == [10]
        save(checkpoints, 15)
    assert checkpoint.steps(tmp_path) == [10, 15]


def test_relative_folders_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with checkpoint.Checkpoints("run/checkpoints") as checkpoints:
        save(checkpoints, 1)
    assert_same(checkpoint.restore_train("run/checkpoints", abstract()), make_state())


def test_donated_updates_do_not_reach_a_save_under_way(tmp_path):
    size = 4_000_000  # large enough to be still on its way when the updates run
    state = {"w": jnp.zeros((S, size)), "host": np.zeros((S, 4))}

    @functools.partial(jax.jit, donate_argnums=0)
    def update(w):
        return w + 1.0

    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, train=state, **REST)
        for _ in range(5):
            state["w"] = update(state["w"])
            state["host"] += 1.0
    assert float(state["w"][0, 0]) == 5.0
    saved = checkpoint.restore_train(tmp_path, jax.eval_shape(lambda: state))
    assert not np.asarray(saved["w"]).any()
    assert not np.asarray(saved["host"]).any()


def test_keep_better_takes_the_improved_members_only():
    old, new = make_state(0.0).weights, make_state(50.0).weights
    best = checkpoint.keep_better(old, new, jnp.array([False, True, False]))
    expected = np.array(old["w"])
    expected[1] = new["w"][1]
    np.testing.assert_array_equal(best["w"], expected)


def test_a_full_disk_leaves_the_step_before_and_saving_can_go_on(tmp_path):
    state = {"w": np.random.default_rng(0).normal(size=(S, 200_000))}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_now(step):
        checkpoints.save(step, train=state, **REST)
        checkpoints.wait()

    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        save_now(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:  # no file may grow beyond 100 kB, as on a disk that is nearly full
            with pytest.raises(OSError, match="step 2 was not saved") as error:
                save_now(2)
            with pytest.raises(OSError, match="step 1 was not saved"):
                save_now(1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "\n" not in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        restored = checkpoint.restore_train(tmp_path, state)
        np.testing.assert_array_equal(restored["w"], np.float32(state["w"]))
        save_now(3)
    assert checkpoint.steps(tmp_path) == [1, 3]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot open the checkpoint folder") as error:
        checkpoint.Checkpoints(tmp_path / "file" / "checkpoints")
    assert "\n" not in str(error.value)


def python(program, *arguments, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=os.getcwd(),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("again", [1, 2])
def test_kill_while_saving_leaves_the_step_before(tmp_path, again):
    program = """
        import os, signal, sys
        import numpy as np
        from jdql.runtime.checkpoint import Checkpoints
        one = {"w": np.ones(3, np.float32)}
        REST = dict(learned=one, best=one, metadata={})
        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(1, train={"w": np.ones((3, 4), np.float32)}, **REST)
        checkpoints.wait()
        large = np.random.default_rng(0).normal(size=(3, 10_000_000))
        checkpoints.save(int(sys.argv[2]), train={"w": large}, **REST)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = python(program, tmp_path, again)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(tmp_path.glob("*tmp*"))  # it was killed in the middle of a save
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        state = {"w": jax.ShapeDtypeStruct((3, 4), jnp.float32)}
        restored = checkpoint.restore_train(tmp_path, state)
        np.testing.assert_array_equal(restored["w"], np.ones((3, 4)))
        save(checkpoints, 2)
    assert checkpoint.steps(tmp_path) == [1, 2]


def test_restoring_on_fewer_and_on_more_devices(tmp_path):
    program = """
        import sys
        import jax, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec
        from jdql.runtime import checkpoint
        mesh = jax.make_mesh((4,), ("members",), axis_types=(AxisType.Auto,))
        shards = NamedSharding(mesh, PartitionSpec("members"))
        there, back = sys.argv[1:]
        state = {"w": np.arange(8, dtype=np.float32).reshape(4, 2)}
        placed = jax.device_put(state, shards)
        with checkpoint.Checkpoints(there) as checkpoints:
            checkpoints.save(1, train=placed, learned=placed, best=placed, metadata={})
        small = checkpoint.restore_train(back, state, sharding=shards)
        assert small["w"].sharding == shards, small["w"].sharding
        np.testing.assert_array_equal(small["w"], state["w"] + 1)
    """
    state = {"w": jnp.arange(8, dtype=jnp.float32).reshape(4, 2)}
    shifted = jax.tree.map(lambda w: w + 1, state)
    with checkpoint.Checkpoints(tmp_path / "one") as checkpoints:
        checkpoints.save(1, train=shifted, **REST)
    done = python(program, tmp_path / "four", tmp_path / "one", devices=4)
    assert done.returncode == 0, done.stderr
    assert_same(checkpoint.restore_train(tmp_path / "four", state), state)
    assert_same(checkpoint.restore_learned(tmp_path / "four", state, "best"), state)
