"""Decision Diffuser: linear systems, Gaussian plans, labels and windows by hand."""

from __future__ import annotations

import dataclasses
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.agents import decision_diffuser, trajectories
from jdql.agents.decision_diffuser import Learned
from jdql.data.dataset import from_arrays
from jdql.data.scaling import Affine, Scaling
from jdql.runtime.recipe import member_config
from jdql.types import DataSpec
from tests.agents.programs import once
from tests.networks.filled import filled

SPEC = DataSpec(2, 2, (-4.0, -4.0), (4.0, 4.0))
SMALL = decision_diffuser.Config(
    horizon=6, dim=8, dim_mults=(1,), hidden=(4, 4), diffusion_steps=40
)


def parts_of(spec=SPEC, **changes) -> decision_diffuser.Parts:
    return decision_diffuser.build(dataclasses.replace(SMALL, **changes), spec)


# A linear system ----------------------------------------------------------------------

A = np.array([[1.0, 0.2], [-0.1, 0.9]])
B = np.array([[0.5, 0.1], [0.0, 0.4]])


def exact_inverse() -> dict:
    """f(s, s') = B^-1 (s' - A s) in a ReLU network: u = relu(u) - relu(-u)."""
    inverse = np.linalg.inv(B)
    gain = np.concatenate([-inverse @ A, inverse], axis=1)
    both = np.concatenate([np.eye(2), -np.eye(2)])
    kernels = gain.T @ both.T, np.eye(4), both
    layers = {
        f"Dense_{i}": {"kernel": jnp.float32(k), "bias": jnp.zeros(k.shape[1])}
        for i, k in enumerate(kernels)
    }
    return {"params": layers}


def sees(plan):
    """A network that always estimates this plan."""
    return SimpleNamespace(
        apply=lambda params, x, *told: jnp.broadcast_to(plan, x.shape)
    )


@pytest.mark.parametrize("execute", [1, 3])
def test_inverse_dynamics_carry_out_a_plan_of_a_linear_system(execute):
    """x' = A x + B u: also from beside the plan its next state is reached at once."""
    plan = np.random.default_rng(0).uniform(-0.5, 0.5, (6, 2)).astype(np.float32)
    parts = parts_of(predict="x0", execute=execute, sampler="ddim", sample_steps=1)
    acting = decision_diffuser.acting(parts._replace(network=sees(plan)))
    learned = Learned((), exact_inverse())
    assert (acting.follow is None) == (execute == 1)
    state = jnp.array([0.3, -0.2])
    rows, carry = acting.act(learned, (), state[None], jax.random.key(0))
    assert carry == ()
    assert len(rows) == execute
    for i, row in enumerate(rows):
        action = acting.follow(learned, row, state) if execute > 1 else row
        state = jnp.float32(A @ state + B @ action)
        np.testing.assert_allclose(state, plan[1 + i], atol=1e-5)


def test_actions_stay_within_their_bounds():
    parts = parts_of()
    far = jnp.array([90.0, -90.0])
    action = decision_diffuser.follow(
        parts, Learned((), exact_inverse()), far, jnp.zeros(2)
    )
    np.testing.assert_allclose(action, [4.0, -4.0])


# Gaussian plans -----------------------------------------------------------------------


def gaussian(parts):
    """States are N(0, 1), given a return y they are N(y, 1): E[x_0 | x_k]."""
    signal = jnp.asarray(parts.schedule.signal, jnp.float32)

    def apply(params, x, k, told, keep):
        mean = (keep * told[..., 0])[..., None, None]
        return mean + signal[k] * (x - signal[k] * mean)

    return parts._replace(network=SimpleNamespace(apply=apply))


def recursion(schedule, mean):
    """Mean and deviation of DDPM's chain from N(0, 1), by its posterior."""
    before = np.append(1.0, schedule.signal[:-1] ** 2)
    m, variance = 0.0, 1.0
    for k in reversed(range(schedule.steps)):
        abar = schedule.signal[k] ** 2
        alpha = abar / before[k]
        of_x0 = np.sqrt(before[k]) * (1 - alpha) / (1 - abar)
        of_xk = np.sqrt(alpha) * (1 - before[k]) / (1 - abar)
        gain = of_x0 * np.sqrt(abar) + of_xk
        m = gain * m + of_x0 * (1 - abar) * mean
        noise = (1 - alpha) * (1 - before[k]) / (1 - abar)
        variance = gain**2 * variance + noise
    return m, np.sqrt(variance)


def test_half_the_temperature_is_half_the_deviation_about_the_guided_mean():
    """The chain is affine: its mean is that of w y, which its noise does not move."""
    parts = gaussian(parts_of(predict="x0", clip=False, target_return=0.5))
    mean, deviation = recursion(parts.schedule, 1.2 * 0.5)
    assert mean == pytest.approx(0.6, abs=0.01)
    assert 0.9 < deviation < 1

    @once
    def plans(temperature, key):
        config = member_config(parts.config, {"temperature": temperature})
        own = parts._replace(config=config)
        return decision_diffuser.plans(
            own, Learned((), ()), jnp.ones((1, 2)), key, 4000
        )

    key = jax.random.key(0)
    half, whole = (np.asarray(plans(t, key)) for t in (0.5, 1.0))
    np.testing.assert_array_equal(half[:, 0], 1.0)
    np.testing.assert_allclose(
        half[:, 1:] - mean, (whole[:, 1:] - mean) / 2, rtol=1e-3, atol=1e-3
    )
    assert whole[:, 1:].std() == pytest.approx(deviation, rel=0.02)
    assert half[:, 1:].mean() == pytest.approx(mean, abs=0.01)


def test_returns_are_composed_and_one_is_not_wanted():
    """Means add: 0.4 * 1 + 1.5 * 0.2 - 0.5 * (-0.6)."""
    parts = gaussian(parts_of(predict="x0", clip=False, temperature=0.0))
    asked = {"returns": (0.4, 0.2, -0.6), "weights": (1.0, 1.5, -0.5)}
    found = decision_diffuser.plans(
        parts, Learned((), ()), jnp.ones((1, 2)), jax.random.key(0), **asked
    )[0]
    np.testing.assert_allclose(found[1:], recursion(parts.schedule, 1.0)[0], rtol=1e-4)


@pytest.mark.parametrize("network", decision_diffuser.NETWORKS)
def test_a_network_answers_to_a_return_unless_it_is_dropped(network):
    parts = parts_of(network=network, layers=1, heads=2, width=16)
    x, told = jnp.ones((2, 6, 2)), jnp.ones((2, 1))
    params = filled(parts.network, x, 0, told, jnp.ones(2))
    low, high = (
        decision_diffuser.stacked(parts, params, (value,))(
            jnp.broadcast_to(x, (2, *x.shape)), jnp.int32(3)
        )
        for value in (0.1, 0.9)
    )
    np.testing.assert_array_equal(low[0], high[0])
    assert jnp.abs(low[1] - high[1]).min() > 1e-4
    assert jnp.abs(low[1] - low[0]).max() > 1e-3


def test_the_last_states_are_held_at_the_start_of_a_plan():
    parts = gaussian(parts_of(predict="x0", history=3, clip=True))
    acting = decision_diffuser.acting(parts)
    assert acting.history == 3
    seen = jnp.arange(6.0).reshape(3, 2)
    key = jax.random.key(1)
    found = decision_diffuser.plans(parts, Learned((), ()), seen, key)[0]
    np.testing.assert_array_equal(found[:3], seen)
    assert np.abs(found[3:]).max() <= 1
    # The action is from the current state, the third, to the next one.
    learned = Learned((), exact_inverse())
    rows, _ = acting.act(learned, (), seen, key)
    expected = decision_diffuser.follow(parts, learned, found[3], seen[2])
    np.testing.assert_allclose(rows[0], expected, rtol=1e-5)


# Training -----------------------------------------------------------------------------


def test_losses_by_hand():
    """A network of ones where the return is kept, zeros where it is dropped."""
    parts = parts_of(history=2, dropout=0.25)
    constant = SimpleNamespace(
        apply=lambda p, x, k, told, keep: jnp.ones_like(x) * keep[:, None, None]
    )
    still = SimpleNamespace(apply=lambda params, pair: pair[..., :2] - pair[..., 2:])
    parts = parts._replace(network=constant, inverse=still)
    rng = np.random.default_rng(0)
    state, action, noise = jnp.float32(rng.normal(size=(3, 2, 6, 2)))
    batch = decision_diffuser.Batch(state, action, jnp.zeros(2))
    draws = decision_diffuser.Draws(
        jnp.array([3, 5]), noise, coin=jnp.array([0.25, 0.24])
    )
    loss, metrics = decision_diffuser.planner_loss((), parts, batch, draws)
    error = jnp.square(noise - np.array([1.0, 0.0])[:, None, None])
    # Two known states, which the mean counts.
    error = float(error.at[:, :2].set(0).mean())
    assert loss == pytest.approx(error / 2, rel=1e-5)
    assert metrics["bc_loss"] == pytest.approx(error, rel=1e-5)
    loss, metrics = decision_diffuser.inverse_loss((), parts, batch)
    wrong = action[:, 1:-1] - (state[:, 1:-1] - state[:, 2:])
    assert loss == pytest.approx(float(jnp.square(wrong).mean()) / 2, rel=1e-5)


def episodes(lengths, terminal=()):
    """States count up from 1; the reward of step t is t."""
    n = sum(lengths)
    ends = np.cumsum(lengths)
    marked = np.zeros(n, bool)
    marked[ends[list(terminal)] - 1] = True
    seen = np.arange(1.0, n + 1)[:, None] * np.ones(2)
    return from_arrays(
        seen, seen / n, np.arange(n), seen + 1, marked, episode_ends=ends
    )


def test_labels_are_returns_over_their_scale_and_warn_of_a_target():
    data = episodes((3, 2), (1,))
    by_hand = np.array([0 + 0.5 + 0.5, 1 + 1, 2, 3 - 48, -96])
    found = parts_of(discount=0.5, returns_scale=4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = decision_diffuser.prepare(found, data)
    np.testing.assert_allclose(prepared.label, by_hand / 4)
    greatest = trajectories.return_labels(data, 0.5, -100.0, None)
    np.testing.assert_allclose(greatest, by_hand / 2)
    # Labels go from -24 to 0.5: half of their span is 12.25.
    trajectories.warn_of_target(12.7, prepared.label)
    for target in (12.8, -36.8):
        with pytest.warns(UserWarning, match="far outside the returns of the data"):
            trajectories.warn_of_target(target, prepared.label)


@pytest.mark.parametrize("history", [1, 3])
def test_windows_go_on_behind_an_end_and_begin_with_the_first_state(history):
    """The C-th state is one of the data; earlier ones stop at the episode's first."""
    still = Affine(np.float32([0.0, 0.0]), np.float32([1.0, 1.0]))
    moved = Affine(np.float32([2.0, 2.0]), np.float32([0.5, 0.5]))
    parts = parts_of(SPEC._replace(scaling=Scaling(moved, still)), history=history)
    parts = parts._replace(config=dataclasses.replace(parts.config, returns_scale=1.0))
    data = jax.tree.map(jnp.asarray, decision_diffuser.prepare(parts, episodes((4, 2))))
    batch = once(lambda key: decision_diffuser.sample_batch(parts, key, data))(
        jax.random.key(0)
    )
    begun = set()
    for state, action, label in zip(*map(np.asarray, batch), strict=True):
        t = round(float(state[history - 1, 0])) - 1
        begun.add(t)
        first, end = (0, 4) if t < 4 else (4, 6)
        at = t - (history - 1) + np.arange(6)
        expected = np.where(at < end, np.maximum(at, first) + 1, -1.0)  # (0 - 2) / 2
        np.testing.assert_allclose(state[:, 0], expected)
        acted = np.where(at < end, (np.maximum(at, first) + 1) / 6, 0.0)
        np.testing.assert_allclose(action[:, 0], acted, rtol=1e-6)
        assert label == data.label[t]
    assert begun == set(range(6))


# Mistakes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 7, "dim_mults": (1, 1)}, "take a multiple of 2"),
        ({"history": 0}, "history must be at least 1"),
        ({"history": 4, "execute": 3}, "of which 4 are known, leads 2 steps on"),
        ({"guidance": float("nan")}, "guidance must be a finite number, got nan"),
        ({"temperature": float("inf")}, "temperature must be a finite number"),
        ({"predict": "v"}, "predict must be one of"),
        ({"dim": 6}, "widths of a U-Net"),
        ({"network": "mlp"}, "network must be one of"),
        ({"network": "dit", "heads": 3}, "heads"),
    ],
)
def test_wrong_settings_get_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        parts_of(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"padding": False}, "no episode is long enough"),
        ({"returns_scale": 0.0}, "returns are divided by 0, and it must be more"),
        ({"returns_scale": None, "discount": 0.0}, "returns are divided by 0"),
    ],
)
def test_data_that_do_not_fit_get_one_line(changes, message):
    data = episodes((4, 2))
    data = data._replace(reward=np.zeros(6, np.float32))
    with pytest.raises(ValueError, match=message) as error:
        decision_diffuser.prepare(parts_of(**changes), data)
    assert "\n" not in str(error.value)
