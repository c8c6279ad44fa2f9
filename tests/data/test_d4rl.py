from __future__ import annotations

import h5py
import numpy as np
import pytest

from jdql.data import d4rl


def arrays(m: int, seed: int = 0) -> dict[str, np.ndarray]:
    g = np.random.default_rng(seed)
    return {
        "observations": g.standard_normal((m, 3)).astype(np.float32),
        "actions": g.uniform(-1, 1, (m, 2)).astype(np.float32),
        "rewards": g.standard_normal(m).astype(np.float32),
        "terminals": np.zeros(m, bool),
        "timeouts": np.zeros(m, bool),
    }


def write(path, data):
    with h5py.File(path, "w") as file:
        for name, value in data.items():
            file[name] = value
        file["metadata/algorithm"] = "SAC"
    return path


def test_timed_out_rows_and_the_last_row_are_dropped(tmp_path):
    data = arrays(9)
    data["terminals"][2] = True
    data["timeouts"][5] = True
    source = d4rl.read(write(tmp_path / "a.hdf5", data))
    d = source.dataset
    kept = [0, 1, 2, 3, 4, 6, 7]  # 5 timed out, 8 is the file's last
    np.testing.assert_array_equal(d.observation, data["observations"][kept])
    np.testing.assert_array_equal(
        d.next_observation, data["observations"][[i + 1 for i in kept]]
    )
    np.testing.assert_array_equal(d.reward, data["rewards"][kept])
    assert np.flatnonzero(d.terminal).tolist() == [2]
    assert np.flatnonzero(d.timeout).tolist() == [4, 6]
    assert d.episode_ends.tolist() == [3, 5, 7]
    assert source.spec.action_low == (-1.0, -1.0)
    assert source.id.endswith("a.hdf5")


def reference_rows(terminals, timeouts, limit):
    """The rule row by row: which are kept."""
    kept, step = [], 0
    for i in range(len(terminals) - 1):
        final = timeouts[i] if timeouts is not None else step == limit - 1
        if final:
            step = 0
            continue
        if terminals[i]:
            step = 0
        kept.append(i)
        step += 1
    return kept


@pytest.mark.parametrize("with_timeouts", [True, False])
def test_against_the_rule_row_by_row(with_timeouts):
    g = np.random.default_rng(3)
    data = arrays(500)
    data["rewards"] = np.arange(500, dtype=np.float32)
    data["terminals"] = g.random(500) < 0.03
    data["timeouts"] = g.random(500) < 0.03
    if not with_timeouts:
        del data["timeouts"]
    rows = reference_rows(data["terminals"], data.get("timeouts"), 20)
    out = d4rl.transitions(data, max_episode_steps=20)
    np.testing.assert_array_equal(out.reward, rows)
    assert 400 < len(rows) < 499
    np.testing.assert_array_equal(out.terminal, data["terminals"][rows])
    # every end of an episode is one or the other, never both
    ends = out.episode_ends - 1
    assert (out.terminal[ends] ^ out.timeout[ends]).all()


def test_errors_are_one_clear_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        d4rl.read(tmp_path / "none.hdf5")
    whole = write(tmp_path / "whole.hdf5", arrays(5000))
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(whole.read_bytes()[:40_000])
    with pytest.raises(ValueError, match="damaged") as caught:
        d4rl.read(cut)
    assert "\n" not in str(caught.value)
    missing = arrays(5)
    del missing["rewards"]
    with pytest.raises(ValueError, match="lacks rewards"):
        d4rl.read(write(tmp_path / "missing.hdf5", missing))
    short = arrays(5) | {"actions": np.zeros((4, 2), np.float32)}
    with pytest.raises(ValueError, match="actions 4"):
        d4rl.read(write(tmp_path / "short.hdf5", short))
    with pytest.raises(ValueError, match="empty"):
        d4rl.read(write(tmp_path / "one.hdf5", arrays(1)))
