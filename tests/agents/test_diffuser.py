"""Diffuser: plans between known ends, their labels, windows and followers by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.agents import diffuser, diffuser_guided, trajectories
from jdql.agents.base import Given
from jdql.data.dataset import from_arrays
from jdql.data.episodes import returns_to_go
from jdql.data.scaling import Affine, Scaling
from jdql.diffusion import reverse, samplers
from jdql.optim import Model
from jdql.types import DataSpec
from tests.agents.programs import once

# Position and speed of one axis, then the goal's position; one force.
SPEC = DataSpec(3, 1, (-1.0,), (1.0,))
LINE = diffuser.Config(
    horizon=8, states=2, goal=(2,), dim=8, dim_mults=(1, 1), padding=False, execute=12
)
SCALING = Scaling(
    Affine(np.float32([1.0, 2.0, 5.0]), np.float32([0.5, 0.25, 0.1])),
    Affine(np.float32([0.2]), np.float32([4.0])),
)
SCALED = SPEC._replace(scaling=SCALING, action_low=(-4.0,), action_high=(4.0,))


def parts_of(spec=SPEC, **changes) -> diffuser.Parts:
    return diffuser.build(dataclasses.replace(LINE, **changes), spec)


# Plans --------------------------------------------------------------------------------

H, K, VAR = 17, 100, 0.05
INNER = np.arange(1, H - 1)


def bridge_network(schedule):
    """E[tau | its noisy inside, its clean ends] of a Brownian bridge.

    Positions take steps of variance 0.05; forces and speeds are N(0, 1).
    """
    law = VAR * (np.minimum.outer(INNER, INNER) - np.outer(INNER, INNER) / (H - 1))
    share = jnp.asarray(INNER / (H - 1), jnp.float32)
    gains = np.stack(
        [
            a * law @ np.linalg.inv(a**2 * law + s**2 * np.eye(H - 2))
            for a, s in zip(schedule.signal, schedule.noise, strict=True)
        ]
    ).astype(np.float32)
    signal = jnp.asarray(schedule.signal, jnp.float32)

    def apply(params, x, k):
        line = x[:, :1, 1] + (x[:, -1:, 1] - x[:, :1, 1]) * share
        inside = line + (x[:, 1:-1, 1] - signal[k] * line) @ jnp.asarray(gains)[k].T
        return (signal[k] * x).at[:, 1:-1, 1].set(inside)

    return SimpleNamespace(apply=apply)


def test_plans_between_a_start_and_a_goal_are_a_brownian_bridge():
    """Mean: the line between the ends.  Variance: h (T - h) / T of a step's."""
    parts = parts_of(
        horizon=H, dim_mults=(1,), diffusion_steps=K, warm_start=None, states=2
    )
    parts = parts._replace(network=bridge_network(parts.schedule))
    seen = jnp.array([-0.5, 0.3, 0.8])
    plan = once(lambda key: diffuser.plans(parts, (), (), seen, key, count=4000)[-1])
    found = np.asarray(plan(jax.random.key(0)))
    np.testing.assert_array_equal(found[:, 0, 1:], np.tile(seen[:2], (4000, 1)))
    np.testing.assert_array_equal(found[:, -1, 1:], np.float32([[0.8, 0.0]] * 4000))
    place = found[:, 1:-1, 1]
    line = -0.5 + 1.3 * INNER / (H - 1)
    variance = VAR * INNER * (H - 1 - INNER) / (H - 1)
    np.testing.assert_allclose(place.mean(axis=0), line, atol=0.03)
    # The chain of 100 steps has a spread that is a few percent too small.
    np.testing.assert_allclose(place.var(axis=0), variance, rtol=0.15)


def test_a_goal_is_known_in_the_environments_units():
    """(x - shift) scale: a goal of x = 3 is at rest at 1 and -0.5."""
    parts = parts_of(SCALED)
    seen = SCALING.observation.forward(np.float32([2.0, 6.0, 3.0]))
    plan = diffuser.known(parts, jnp.asarray(seen), 8)
    np.testing.assert_allclose(plan[0], [0, 0.5, 1.0])
    np.testing.assert_allclose(plan[-1], [0, 1.0, -0.5], atol=1e-6)
    free = diffuser.known(parts_of(SCALED, goal=(), execute=1), jnp.asarray(seen), 8)
    np.testing.assert_allclose(free[-1], 0)


@pytest.mark.parametrize("horizon", [4, 12])
def test_plans_of_another_horizon_keep_their_ends(horizon):
    parts = parts_of(plan_horizon=horizon, diffusion_steps=3, clip=True)
    state = once(lambda key: diffuser.init(parts, key))(jax.random.key(0))
    assert state.planner.params["params"]["out"]["kernel"].shape == (8, 3)
    seen = jnp.array([-0.5, 0.3, 0.8])
    plan = once(lambda p, key: diffuser.plans(parts, p, (), seen, key)[-1])
    found = plan(diffuser.learned(state), jax.random.key(1))[0]
    assert found.shape == (horizon, 3)
    np.testing.assert_array_equal(found[0, 1:], seen[:2])
    np.testing.assert_array_equal(found[-1, 1:], jnp.array([0.8, 0.0]))
    assert np.abs(found).max() <= 1


def on_a_line(params, x, k):
    """Goes to the goal in even steps, at a speed of at most 5."""
    share = jnp.linspace(0, 1, x.shape[1])
    place = x[:, :1, 1] + (x[:, -1:, 1] - x[:, :1, 1]) * share
    speed = (x[:, -1:, 1] - x[:, :1, 1]) / (0.01 * (x.shape[1] - 1)) + 0 * share
    return jnp.stack([0 * place, place, jnp.clip(speed, -5, 5)], axis=-1)


@pytest.mark.parametrize(("goal", "horizon"), [(0.1, 4), (0.25, 8), (0.4, 16)])
def test_the_shortest_plan_without_a_jump_is_taken(goal, horizon):
    """A step of 0.05 is the longest: three make 0.15, seven 0.35, fifteen 0.75.

    The speed at either end is held at 0, which looks like a jump of 0.025 at most.
    """
    parts = parts_of(
        horizon=16, shorter=(4, 8), jump=0.03, dim_mults=(1,), diffusion_steps=2
    )
    parts = parts._replace(network=SimpleNamespace(apply=on_a_line))
    seen = jnp.array([0.0, 0.0, goal])
    plan, _ = diffuser.propose(parts, (), (), seen, jax.random.key(0))
    expected = np.minimum(np.arange(16) / (horizon - 1), 1) * goal
    np.testing.assert_allclose(plan[:, 1], expected, atol=1e-6)


# Following ----------------------------------------------------------------------------


def test_waypoints_are_the_next_states_and_then_rest_at_the_last():
    """A speed of 0 is -0.5 on the scale of the data."""
    plan = jnp.arange(24.0).reshape(8, 3)
    rows = diffuser.waypoints(parts_of(SCALED), plan)
    np.testing.assert_array_equal(rows[:7], plan[1:, 1:])
    np.testing.assert_allclose(rows[7:], np.tile([22.0, -0.5], (5, 1)))
    few = diffuser.waypoints(parts_of(SCALED, execute=3), plan)
    np.testing.assert_array_equal(few, plan[1:4, 1:])


def test_a_waypoint_is_followed_in_the_environments_units():
    parts = parts_of(SCALED)

    def force(there, here):
        row = parts.layout.units.state(jnp.array(there))
        seen = SCALING.observation.forward(np.float32([*here, 0.0]))
        return diffuser.follow(parts, (), row, jnp.asarray(seen))

    # (1.5 - 1.2) + (0.4 - 0.6) = 0.1, whose place on the actions' scale is -0.4.
    np.testing.assert_allclose(force([1.5, 0.4], [1.2, 0.6]), [-0.4], atol=1e-5)
    np.testing.assert_allclose(force([9.0, 0.0], [1.0, 0.0]), [4.0])  # a bound


def test_a_policy_with_a_goal_plans_once_and_hands_out_waypoints():
    agent = diffuser.make(dataclasses.replace(LINE, diffusion_steps=2), SPEC)
    seen = jnp.array([[-0.5, 0.3, 0.8]])

    @once
    def play(key):
        learned = agent.learned(agent.init(key))
        rows, carry = agent.acting.act(learned, agent.acting.reset(), seen, key)
        return rows, carry, agent.acting.follow(learned, rows[-1], seen[0])

    rows, carry, action = play(jax.random.key(0))
    assert rows.shape == (12, 2)
    assert carry == ()
    np.testing.assert_array_equal(rows[6:], np.float32([[0.8, 0.0]] * 6))
    np.testing.assert_allclose(action, [1.0])  # 1.3 - 0.3, within its bound


def test_a_warm_start_goes_on_from_the_last_plan():
    """What it starts from is the last plan, moved on and noised to its level."""
    parts = parts_of(warm_start=5, execute=3, goal=())

    def start(predict, draws, guide=None, clamp=None, whole=False):
        return jnp.stack([draws.start] * 2)

    only_start = samplers.Sampler(0, start)
    parts = parts._replace(warmed=only_start, sampler=only_start)
    plan, key = jnp.arange(24.0).reshape(8, 3), jax.random.key(2)
    carry = diffuser.remember(parts, diffuser.forget(parts), plan)
    found = diffuser.plans(parts, (), carry, jnp.zeros(3), key)[-1, 0]
    z = reverse.draw_chain(key, 0, (1, 8, 3)).start[0]
    left = np.concatenate([plan[3:], np.tile(plan[-1], (3, 1))])
    a, s = parts.schedule.signal[5], parts.schedule.noise[5]
    np.testing.assert_allclose(found, a * left + s * z, rtol=1e-5, atol=1e-6)


def test_the_first_plan_of_an_episode_is_not_warm():
    config = dataclasses.replace(LINE, warm_start=1, diffusion_steps=3, goal=())
    config = dataclasses.replace(config, execute=1)
    plain = dataclasses.replace(config, warm_start=None)
    seen, key = jnp.array([[-0.5, 0.3, 0.8]]), jax.random.key(0)

    def first(config):
        agent = diffuser.make(config, SPEC)

        def act(key):
            learned = agent.learned(agent.init(key))
            once_ = agent.acting.act(learned, agent.acting.reset(), seen, key)
            again = agent.acting.act(learned, once_[1], seen, key)
            return once_[0], again[0]

        return once(act)(key)

    warm, cold = first(config), first(plain)
    np.testing.assert_allclose(warm[0], cold[0], atol=1e-6)
    np.testing.assert_allclose(cold[1], cold[0], atol=1e-6)
    assert np.abs(warm[1] - warm[0]).max() > 1e-4


def test_the_chain_of_plans_begins_as_noise_and_ends_as_the_plans():
    parts = parts_of(warm_start=5)
    seen, key = jnp.array([-0.5, 0.3, 0.8]), jax.random.key(0)
    fresh = diffuser.forget(parts)

    @jax.jit
    def both(key):
        learned = diffuser.learned(diffuser.init(parts, key))
        chain = diffuser.chain(parts, learned, seen, key, 2)
        return chain, diffuser.plans(parts, learned, fresh, seen, key, 2)

    chain, plans = both(key)
    np.testing.assert_array_equal(chain[-2:], plans)
    noise = reverse.draw_chain(key, parts.sampler.draws, (2, 8, 3)).start
    np.testing.assert_array_equal(chain[0][:, 1:-1], noise[:, 1:-1])
    known = diffuser.known(parts, seen, 8)
    for end in (0, -1):  # start and goal are held all along
        held = np.broadcast_to(known[end, 1:], (len(chain), 2, 2))
        np.testing.assert_array_equal(chain[:, :, end, 1:], held)


# Data ---------------------------------------------------------------------------------


def episodes(lengths, terminal):
    n = sum(lengths)
    ends = np.cumsum(lengths)
    marked = np.zeros(n, bool)
    marked[ends - 1] = terminal
    seen = np.arange(3.0 * n).reshape(n, 3)
    steps = (seen, -np.arange(1.0, n + 1)[:, None] / n, np.arange(n), seen + 3.0)
    return from_arrays(*steps, marked, episode_ends=ends)


def test_returns_run_to_the_end_of_the_episode_by_hand():
    data = episodes((3, 2), (False, True))
    # Rewards 0, 1, 2 and 3, 4 - 100.
    found = returns_to_go(data, 0.5, penalty=-100.0)
    np.testing.assert_allclose(found, [0 + 0.5 + 0.5, 1 + 1, 2, 3 - 48, -96])


def test_windows_beyond_an_episode_are_zeros_of_the_environment():
    layout = parts_of(SCALED, padding=True, goal=(), execute=1).layout
    data = jax.tree.map(jnp.asarray, episodes((2,), (True,)))
    rows = once(lambda key: layout.rows(key, data, 64))(jax.random.key(0))
    found = np.asarray(layout.take(data, rows))
    assert found.shape == (64, 8, 3)
    nothing = [-0.8, -0.5, -0.5]  # (0 - 0.2) 4, (0 - 1) / 2, (0 - 2) / 4
    both = np.concatenate([data.action, data.observation[:, :2]], axis=1)
    # A window starts at either step.
    for window in found:
        start = 0 if np.allclose(window[0], both[0]) else 1
        np.testing.assert_allclose(window[: 2 - start], both[start:])
        np.testing.assert_allclose(window[2 - start :], [nothing] * (6 + start))


def test_what_is_held_is_no_error_and_the_first_action_counts_most():
    """A network that gives 0: the loss is the mean of the weighted squares."""
    parts = parts_of(action_weight=10.0, loss_discount=0.5)
    parts = parts._replace(network=SimpleNamespace(apply=lambda p, x, k: 0 * x))
    batch = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8, 3)), jnp.float32)
    draws = diffuser.Draws(jnp.arange(5), jnp.ones((5, 8, 3)))
    found, _ = diffuser.trajectory_loss((), parts, batch, draws)
    weights = np.repeat(0.5 ** np.arange(8)[:, None], 3, axis=1)
    weights /= weights[:, 0].mean()
    weights[0, 0] = 10.0
    weights[[0, -1], 1:] = 0.0  # held
    np.testing.assert_allclose(found, np.mean(weights * batch**2), rtol=1e-5)


def test_the_average_is_a_copy_until_it_starts_by_hand():
    average, found = 0.0, []
    for step in range(7):
        model = Model(jnp.float32(10 + step), (), jnp.float32(average))
        model = trajectories.averaged(model, jnp.int32(step), 0.9, 2, 4)
        average = float(model.average)
        found.append(average)
    # Copies at 0 and 2, kept between; at 4 and 6 a tenth of the way.
    first = 0.9 * 12 + 0.1 * 14
    expected = [10, 10, 12, 12, first, first, 0.9 * first + 0.1 * 16]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# Guided -------------------------------------------------------------------------------


def guided(scale, value, **changes):
    """Plans of N(0, I), whose value is what is given."""
    own = diffuser.Config(horizon=4, dim=8, dim_mults=(1,), diffusion_steps=20)
    agent = diffuser.make(own, SPEC)
    parts = diffuser.build(own, SPEC)
    signal = jnp.asarray(parts.schedule.signal, jnp.float32)
    network = SimpleNamespace(apply=lambda p, x, k: signal[k] * x)
    parts = parts._replace(network=network)
    planner = agent.model._replace(plans=lambda *a, **n: diffuser.plans(parts, *a, **n))
    stage = diffuser_guided.build(
        dataclasses.replace(
            diffuser_guided.Config(), scale=scale, candidates=32, **changes
        ),
        {"planner": Given(agent._replace(model=planner), ())},
    )
    return stage._replace(network=SimpleNamespace(apply=value))


def test_more_guidance_means_plans_of_more_value():
    """The reward is the first action; every plan starts where one is."""

    def value(params, x, k):
        return x[..., 0, 0]

    def mean(scale):
        stage = guided(scale, value)
        plans = stage.planner.agent.model.plans
        guide = diffuser_guided.guide(stage, ())
        make = once(
            lambda key: plans((), (), jnp.ones(3), key, count=2000, guide=guide)[-1]
        )
        found = make(jax.random.key(0))
        np.testing.assert_array_equal(found[:, 0, 1:], 1.0)
        return found[..., 0, 0].mean()

    found = [mean(scale) for scale in (0.0, 0.1, 0.5)]
    assert abs(found[0]) < 0.05
    assert found[1] - found[0] > 0.05
    # A constant gradient moves the mean in proportion.
    ratio = (found[2] - found[0]) / (found[1] - found[0])
    assert ratio == pytest.approx(5, rel=1e-2)


def test_the_plan_that_was_worth_most_before_its_last_step_is_carried_out():
    def value(params, x, k):
        return -jnp.abs(x[..., 0, 0] - 0.7)

    stage = guided(0.0, value)
    plan, _ = diffuser_guided.propose(stage, (), (), jnp.ones(3), jax.random.key(0))
    before, every = stage.planner.agent.model.plans(
        (), (), jnp.ones(3), jax.random.key(0), count=32
    )
    nearest = np.argmin(np.abs(before[:, 0, 0] - 0.7))
    np.testing.assert_allclose(plan, every[nearest], rtol=1e-6)


# Mistakes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 7}, "take a multiple of 2"),
        ({"plan_horizon": 9}, "take a multiple of 2"),
        ({"states": 4}, "states=4, but observations have 3 numbers"),
        ({"goal": (3,)}, r"goal=\(3,\) must name columns of the 3"),
        ({"states": 3}, "as many positions and as many speeds"),
        ({"goal": (), "execute": 9}, "execute=9 is more than the 8 actions of a plan"),
        ({"shorter": (6, 4)}, r"shorter=\(6, 4\) must be rising horizons of 2 to 7"),
        ({"shorter": (4, 8)}, r"shorter=\(4, 8\) must be rising horizons of 2 to 7"),
        ({"candidates": 0}, "candidates must be at least 1, got 0"),
        ({"candidates": 2, "warm_start": 2}, "like candidates=2 of plans to a goal"),
        ({"shorter": (5,)}, "take a multiple of 2"),
        ({"shorter": (4,), "warm_start": 2}, "that have no warm_start"),
        ({"predict": "v"}, "predict must be one of"),
        ({"warm_start": 20}, "warm_start must be a diffusion step of 1 to 19"),
        ({"dim": 6}, "widths of a U-Net"),
    ],
)
def test_wrong_settings_get_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        parts_of(**changes)
    assert "\n" not in str(error.value)


def test_windows_longer_than_every_episode_get_one_line():
    agent = diffuser.make(LINE, SPEC)
    with pytest.raises(ValueError, match="no episode is long enough") as error:
        agent.prepare(episodes((7, 5), (False, False)))
    assert "\n" not in str(error.value)


def test_a_planner_with_a_goal_is_not_guided():
    agent = diffuser.make(LINE, SPEC)
    with pytest.raises(ValueError, match="a planner without goal") as error:
        diffuser_guided.build(diffuser_guided.Config(), {"planner": Given(agent, ())})
    assert "\n" not in str(error.value)
