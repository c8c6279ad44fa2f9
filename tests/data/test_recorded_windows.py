"""Windows and returns-to-go against the authors' own datasets."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.data import scaling, windows
from jdql.data.dataset import Dataset, from_arrays
from jdql.data.episodes import returns_to_go
from jdql.data.windows import counts, locate, require, rows, take
from tests.data.recordings import recorded

CLOSE = {"rtol": 2e-6, "atol": 2e-6}


@functools.partial(jax.jit, static_argnames=("length", "before", "after", "padding"))
def cut(data, index, kept, length, before=0, after=0, padding=windows.repeat):
    """The windows with these numbers among those of the episodes that are kept."""
    each = counts(data.episode_ends, length, before, after) * kept
    episode, start = locate(index, each, before)
    found = rows(data.episode_ends, episode, start, length)
    return episode, start, found, padding(take(data, found))


def dataset(observation, action, reward, terminal, episode_ends) -> Dataset:
    return from_arrays(
        observation,
        action,
        reward,
        observation,
        terminal,
        episode_ends=episode_ends,
    )


@pytest.mark.parametrize("file", recorded("dp_windows"))
def test_every_window_of_diffusion_policy(file):
    r = np.load(file)
    flat = np.zeros(len(r["data/obs"]))
    data = dataset(r["data/obs"], r["data/action"], flat, flat, r["data/episode_ends"])
    begins = np.concatenate([[0], data.episode_ends[:-1]])
    names = [name.rpartition("/")[0] for name in r if name.endswith("/settings")]
    assert names
    for name in names:
        length, before, after = map(int, r[f"{name}/settings"])
        before, after = min(before, length - 1), min(after, length - 1)  # as they do
        kept = r[f"{name}/episode_mask"]
        total = int((np.asarray(each(data, length, before, after)) * kept).sum())
        assert total == len(r[f"{name}/indices"])
        made = cut(data, np.arange(total), kept, length, before, after)
        episode, start, found, window = jax.tree.map(np.asarray, made)
        first, last = found.row[:, 0], found.row[:, -1]
        left = np.maximum(-start, 0)
        steps = data.episode_ends[episode] - begins[episode]
        right = length - np.maximum(start + length - steps, 0)
        np.testing.assert_array_equal(
            np.stack([first, last + 1, left, right], axis=1), r[f"{name}/indices"]
        )
        np.testing.assert_array_equal(found.valid.sum(axis=1), right - left)
        np.testing.assert_array_equal(window.observation, r[f"{name}/obs"])
        np.testing.assert_array_equal(window.action, r[f"{name}/action"])


def each(data: Dataset, length: int, before: int, after: int):
    """Number of windows of every episode."""
    return counts(jnp.asarray(data.episode_ends), length, before, after)


def paths(r) -> Dataset:
    """The episodes that the authors' buffers hold, an unfinished tail left out."""
    observation, terminal = r["data/observations"], r["data/terminals"]
    cut = terminal | r["data/timeouts"]
    maze = "config/branch" in r and str(r["config/branch"]) == "maze2d"
    if maze and r["config/maze2d_set_terminals"]:  # where the agent leaves the goal
        away = observation[:, :2] - r["config/maze2d_target"]
        near = np.linalg.norm(away, axis=1) <= 0.5
        cut = np.append(near[:-1] & ~near[1:], False)
    ends = np.flatnonzero(cut) + 1
    keep = np.arange(len(cut)) < ends[-1]
    if maze:  # their segments lack the last step
        keep &= ~cut
    kept = np.cumsum(np.append(0, keep))
    ends = np.unique(kept[ends])
    return dataset(
        observation[keep],
        r["data/actions"][keep],
        r["data/rewards"][keep],
        terminal[keep],
        ends[ends > 0],
    )


FITS = {
    "GaussianNormalizer": scaling.gaussian,
    "LimitsNormalizer": scaling.limits,
    "SafeLimitsNormalizer": scaling.limits,
    "CDFNormalizer": scaling.cdf,
}


@pytest.mark.parametrize("file", recorded("diffuser_dataset", "dd_dataset"))
def test_every_window_of_diffuser_and_decision_diffuser(file):
    """jdql has all of theirs, with the same content, and a few more."""
    r = np.load(file)
    data, H = paths(r), int(r["config/horizon"])
    lengths = r["path_lengths"]
    np.testing.assert_array_equal(
        np.diff(data.episode_ends, prepend=0), lengths[lengths > 0]
    )
    numbers = np.cumsum(lengths > 0) - 1
    padded = bool(r["config/use_padding"])
    after = H - 1 if padded else 0
    theirs = r["indices"]
    episode, start = numbers[theirs[:, 0]], theirs[:, 1]
    assert require(data.episode_ends, H, after=after) > len(theirs)
    numbered = np.asarray(each(data, H, 0, after))
    index = (np.cumsum(numbered) - numbered)[episode] + start

    fit = FITS[str(r["config/normalizer"])]
    seen, acted = fit(data.observation), fit(data.action)
    scaled = data._replace(
        observation=seen.forward(data.observation), action=acted.forward(data.action)
    )
    padding = windows.zero(
        seen.forward(np.zeros(data.observation.shape[1])),
        acted.forward(np.zeros(data.action.shape[1])),
    )
    made = cut(scaled, index, 1, H, after=after, padding=padding)
    *found, at, window = jax.tree.map(np.asarray, made)
    np.testing.assert_array_equal(found, (episode, start))
    made = np.concatenate([window.action, window.observation], axis=-1)
    np.testing.assert_allclose(made, r["windows/trajectories"], **CLOSE)
    for name in (n for n in r if n.startswith("windows/condition/")):
        step = int(name.rpartition("/")[2])
        np.testing.assert_allclose(window.observation[:, step], r[name], **CLOSE)

    penalty = float(r["config/termination_penalty"])
    penalty *= bool(r["config/has_termination_penalty"])
    label = returns_to_go(data, float(r["config/discount"]), penalty=penalty)
    label = label[at.row[:, 0]]
    if "windows/returns" in r:
        label = label / r["config/returns_scale"]
        np.testing.assert_allclose(label, r["windows/returns"][:, 0], rtol=2e-6)
    if "windows/values" in r:
        if r["config/normed"]:
            low, high = r["value_bounds"]
            label = 2 * (label - low) / (high - low) - 1
        np.testing.assert_allclose(
            label, r["windows/values"][:, 0], rtol=2e-6, atol=2e-6
        )
