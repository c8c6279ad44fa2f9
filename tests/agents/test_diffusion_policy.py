"""Diffusion Policy: windows, what is carried out, the average, wrong settings."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.agents import diffusion_policy as policy
from jdql.data.dataset import from_arrays
from jdql.diffusion.samplers import Sampler
from jdql.runtime import distributed
from jdql.runtime.acting import Player
from jdql.types import DataSpec, Window
from tests.agents.programs import once

SPEC = DataSpec(3, 2, (-1.0, -1.0), (1.0, 1.0))
SMALL = policy.Config().tiny()


class Linear(nn.Module):
    """A network of few numbers, which sees everything: x W + mean of c + k / 10."""

    @nn.compact
    def __call__(self, x, k, condition=None):
        seen = 0.0 if condition is None else jnp.mean(condition, -1)[..., None, None]
        step = jnp.broadcast_to(k / 10, x.shape[:-2])[..., None, None]
        return nn.Dense(x.shape[-1])(x) + seen + step


def parts_of(network=None, **changes) -> policy.Parts:
    """The parts of a system with a network of few numbers."""
    parts = policy.build(dataclasses.replace(SMALL, **changes), SPEC)
    told = parts.told._replace(network=network or Linear())
    return parts._replace(told=told)


def fresh(parts: policy.Parts) -> policy.TrainState:
    return once(functools.partial(policy.init, parts))(jax.random.key(0))


def numbered(lengths=(9, 5)):
    """Episodes whose observations and actions are the numbers of their steps."""
    step = np.concatenate([np.arange(length) for length in lengths])
    rows = len(step)
    observation = np.stack([step, np.repeat(range(len(lengths)), lengths), step], 1)
    action = np.stack([step, -step], axis=1)
    flat = np.zeros(rows)
    ends = np.cumsum(lengths)
    return from_arrays(observation, action, flat, observation, flat, episode_ends=ends)


# Windows. -----------------------------------------------------------------------------


def test_windows_reach_as_far_beyond_an_episode_as_acting_does():
    """T_o - 1 steps before its start, T_a - 1 behind its end; both are repeated."""
    config = dataclasses.replace(SMALL, observed=3, horizon=6, executed=2)
    agent = policy.make(dataclasses.replace(config, batch_size=500), SPEC)
    data = jax.tree.map(jnp.asarray, agent.prepare(numbered((9,))))
    batch = once(agent.sample_batch)(jax.random.key(0), data)
    windows = {tuple(window) for window in batch.observation[..., 0].tolist()}
    expected = [np.clip(np.arange(6) + start, 0, 8) for start in range(-2, 5)]
    assert windows == {tuple(window.astype(float)) for window in expected}
    np.testing.assert_array_equal(batch.action[..., 0], batch.observation[..., 0])


def test_data_without_a_window_are_refused():
    agent = policy.make(dataclasses.replace(SMALL, horizon=12), SPEC)
    agent.prepare(numbered((10,)))
    with pytest.raises(
        ValueError, match="no episode is long enough for a window of 12"
    ):
        agent.prepare(numbered((9, 5)))


# What is carried out. -----------------------------------------------------------------


def indices(parts: policy.Parts) -> Sampler:
    """A sampler whose sequences are the numbers of their steps, plus the last seen."""
    H = parts.config.horizon

    def sample(predict, draws, guide=None, clamp=None):
        return jnp.broadcast_to(jnp.arange(H, dtype=jnp.float32)[:, None], (H, 2))

    return Sampler(0, sample)


@pytest.mark.parametrize(
    ("observed", "executed", "expected"), [(2, 8, range(1, 9)), (1, 3, range(3))]
)
def test_actions_begin_at_the_last_observation(observed, executed, expected):
    """By default actions 1 to 8 of 16: the first belongs to the observation before."""
    config = dataclasses.replace(policy.Config(), widths=(8,), step_dim=8)
    config = dataclasses.replace(config, observed=observed, executed=executed)
    parts = policy.build(config, SPEC)
    parts = parts._replace(sampler=indices(parts))
    seen = jnp.zeros((observed, 3))
    actions, _ = policy.act(parts, {}, (), seen, jax.random.key(0))
    assert actions[:, 0].tolist() == [*expected]


def test_a_receding_horizon_plans_with_the_last_observations():
    """Through the runtime's queue: eight steps, and a plan before each third one."""
    config = dataclasses.replace(SMALL, observed=2, horizon=4, executed=3)
    agent = policy.make(config, SPEC)

    def act(learned, carry, observations, key):
        # Each action tells its place in the plan and what the plan was made for.
        place = jnp.arange(config.executed, dtype=jnp.float32)
        first, last = observations[:, 0]
        return jnp.stack([place, jnp.full(3, 10 * first + last)], axis=1), carry

    assert agent.acting.history == 2
    acting = agent.acting._replace(act=act)
    mesh = distributed.member_mesh(1, jax.local_devices()[:1])
    player = Player(acting, [0], [0], mesh)
    player.start(jnp.zeros(1))
    made = []
    for t in range(1, 9):
        seen = np.full((1, 1, 3), t, np.float32)
        made.append(player(seen, np.ones((1, 1), bool))[0, 0].tolist())
    plans = [11] * 3 + [34] * 3 + [67] * 2  # at t = 1, 4 and 7
    places = [0, 1, 2, 0, 1, 2, 0, 1]
    assert made == [list(pair) for pair in zip(places, plans, strict=True)]


# Training. ----------------------------------------------------------------------------


def example(parts: policy.Parts) -> tuple[Window, policy.Draws]:
    keys = jax.random.split(jax.random.key(1), 3)
    shape = parts.config.batch_size, parts.config.horizon
    observation, action = (
        jax.random.uniform(key, (*shape, size), minval=-1)
        for key, size in zip(keys, (3, 2), strict=False)
    )
    ones = jnp.ones(shape)
    batch = Window(observation, action, 0 * ones, ones, ones, observation[:, -1])
    return batch, policy.draw(parts, keys[2])


def test_the_average_is_that_of_the_power_rule():
    """Decays 0, 0, 1 - 2^-3/4, 1 - 3^-3/4: the first two copies are forgotten."""
    parts = parts_of(warmup=1)
    batch, draws = example(parts)
    update = once(functools.partial(policy.update_step, parts))
    state = fresh(parts)
    kernels = []
    for _ in range(4):
        state, _ = update(state, batch, draws)
        kernels.append(state.actor.params["params"]["Dense_0"]["kernel"])
    average = kernels[1]
    for n in (2, 3):
        decay = 1 - n**-0.75
        average = decay * average + (1 - decay) * kernels[n]
    learned = policy.learned(state)["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(learned, average, rtol=1e-5)
    assert np.abs(learned - kernels[-1]).max() > 1e-5


def test_under_a_warm_up_the_first_update_changes_nothing():
    parts = parts_of(warmup=4)
    state = fresh(parts)
    update = once(functools.partial(policy.update_step, parts))
    first, _ = update(state, *example(parts))
    jax.tree.map(np.testing.assert_array_equal, first.actor.params, state.actor.params)
    second, _ = update(first, *example(parts))
    change = jax.tree.map(
        lambda a, b: jnp.abs(a - b).max(), second.actor.params, first.actor.params
    )
    largest = max(jax.tree.leaves(change))
    assert largest == pytest.approx(parts.config.lr / 4, rel=1e-2)


def test_the_transformer_drops_out_in_training_alone():
    config = dataclasses.replace(SMALL, network="transformer", dropout=0.5)
    parts = policy.build(config, SPEC)
    state = fresh(parts)
    batch, draws = example(parts)
    (one,) = draws.dropout
    loss = once(
        lambda key: policy.actor_loss(
            state.actor.params, parts, batch, draws._replace(dropout=key)
        )[0]
    )
    losses = [loss(key).item() for key in ((one,), (one,), (jax.random.key(9),), ())]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3
    assert (
        policy.build(dataclasses.replace(config, dropout=0.0), SPEC).told.drops is False
    )


# In-painting. -------------------------------------------------------------------------


def test_observations_that_are_in_painted_are_held():
    parts = parts_of(observations="inpaint", observed=2)
    assert parts.size == 5
    seen = jax.random.uniform(jax.random.key(3), (7, 2, 3), minval=-1)
    state = fresh(parts)
    shape = (7, parts.config.horizon, 5)
    noise = jax.random.normal(jax.random.key(4), (parts.sampler.draws + 1, *shape))
    chain = policy.reverse.ChainDraws(noise[0], noise[1:])
    learned = policy.learned(state)
    made = once(functools.partial(policy.plan, parts))(learned, seen, chain)
    np.testing.assert_array_equal(made[:, :2, 2:], seen)
    assert jnp.abs(made).max() <= 1
    act = once(functools.partial(policy.act, parts))
    actions, _ = act(learned, (), seen[0], jax.random.key(0))
    assert actions.shape == (parts.config.executed, 2)


# Wrong settings. ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observed": 0}, "observed must be at least 1"),
        (
            {"horizon": 8, "observed": 2, "executed": 8},
            "a horizon of at least 9, got 8",
        ),
        ({"widths": (16, 16), "horizon": 5, "executed": 2}, "take a multiple of 2"),
        ({"widths": (12,)}, "multiples of its groups=8"),
        ({"network": "mlp"}, "network must be one of"),
        ({"modulation": "scale"}, "modulation must be one of"),
        ({"observations": "none"}, "observations must be one of"),
        ({"network": "transformer", "observations": "inpaint"}, "network='unet'"),
        ({"network": "transformer", "heads": 3}, "heads of attention"),
        ({"sampler": "ddim", "sample_steps": 6}, "at most diffusion_steps, 5"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        policy.make(dataclasses.replace(SMALL, **changes), SPEC)
    assert "\n" not in str(error.value)
