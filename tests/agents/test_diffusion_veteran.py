"""Diffusion Veteran: windows, labels and losses by hand; plans chosen and followed."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.agents import diffusion_veteran
from jdql.agents.diffusion_veteran import Batch, Draws, Learned, TrainState
from jdql.agents.plan_values import Evidence
from jdql.data.dataset import from_arrays
from jdql.data.scaling import Affine, Scaling
from jdql.diffusion.reverse import ChainDraws
from jdql.optim import start
from jdql.types import DataSpec, Transition
from tests.agents.programs import once
from tests.networks.filled import filled

SPEC = DataSpec(3, 2, (-1.0, -1.0), (1.0, 1.0))
SMALL = dataclasses.replace(
    diffusion_veteran.Config().tiny(), horizon=4, stride=3, states=2, padding=True
)
NOTHING = Learned((), (), ())

pytestmark = pytest.mark.usefixtures("unoptimised")


def parts_of(spec=SPEC, **changes) -> diffusion_veteran.Parts:
    return diffusion_veteran.build(dataclasses.replace(SMALL, **changes), spec)


# Data ---------------------------------------------------------------------------------


def episodes(lengths, terminal=()):
    """Observations count up, and on after an end by a half; the reward of t is t."""
    n, ends = sum(lengths), np.cumsum(lengths)
    marked = np.zeros(n, bool)
    marked[ends[list(terminal)] - 1] = True
    seen = np.arange(n)[:, None] * np.ones(3)
    following = seen + 1.0
    following[ends - 1] -= 0.5
    return from_arrays(
        seen, seen[:, :2] / n, np.arange(n), following, marked, episode_ends=ends
    )


def test_labels_are_discounted_returns_with_the_penalty_of_ends_from_minus_one_to_one():
    parts = parts_of(discount=0.5, termination_penalty=-100.0, stride=1, horizon=2)
    found = diffusion_veteran.prepare(parts, episodes((3, 2), (1,)))
    # 0 + 1/2 + 2/4, 1 + 2/2, 2; the second episode ends truly: 3 - 96/2, 4 - 100.
    returns = np.array([1.0, 2.0, 2.0, -45.0, -96.0])
    np.testing.assert_allclose(found.label, 2 * (returns + 96) / 98 - 1, rtol=1e-6)
    assert (found.label.min(), found.label.max()) == (-1, 1)


@pytest.mark.parametrize("padding", [True, False])
def test_plans_are_the_datas_states_in_strides_and_pairs_are_a_stride_apart(padding):
    parts = parts_of(padding=padding, batch_size=400)
    data = diffusion_veteran.prepare(parts, episodes((12, 5), (1,)))
    data = jax.tree.map(jnp.asarray, data)
    sample = once(lambda key: diffusion_veteran.sample_batch(parts, key, data))
    batch = jax.tree.map(np.asarray, sample(jax.random.key(0)))
    begun = batch.given.plan[:, 0, 0].astype(int)
    last = np.where(begun < 12, 11, 16)[:, None]
    rows = np.minimum(begun[:, None] + 3 * np.arange(4), last)  # stays in the last one
    np.testing.assert_array_equal(batch.given.plan, rows[..., None] * np.ones(2))
    np.testing.assert_array_equal(batch.given.label, data.label[begun])
    # Without padding nine steps lie ahead of a start.
    assert set(begun) == (set(range(17)) if padding else {0, 1, 2})
    # Pairs end with the state behind the third action, also at an episode's end.
    state, following = batch.pair[:, 0], batch.pair[:, 2]
    assert set(state) == {*range(10), 12, 13, 14}
    end = np.isin(state, [9, 14])
    np.testing.assert_array_equal(following, state + 3 - 0.5 * end)
    np.testing.assert_allclose(batch.action[:, 0], state / 17, rtol=1e-6)
    step = batch.given.transition
    assert set(step.reward) == set(range(17))
    np.testing.assert_array_equal(step.observation[:, 1], step.reward)
    np.testing.assert_array_equal(step.mask, step.reward != 16)


def test_behind_an_arrival_windows_stay_at_the_goal_at_rest():
    """Of observations [x, v, goal of x], whose scale is twice the environment's."""
    ones = np.ones(3, np.float32)
    scale = Scaling(Affine(ones, 2 * ones), Affine(0 * ones[:2], ones[:2]))
    changes = {"goal": (2,), "stride": 2, "horizon": 3, "batch_size": 200}
    parts = parts_of(SPEC._replace(scaling=scale), discount=0.5, **changes)
    data = episodes((6, 4))
    paid = np.float32([0, 0, 0, 1, 1, 1, 0, 0, 0, 0])  # the second never arrives
    beside = np.add(data.observation, [0, 0, 0.5])
    data = data._replace(reward=paid, observation=beside)
    found = diffusion_veteran.prepare(parts, data)
    returns = np.array([1 / 8, 1 / 4, 1 / 2, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(found.label, 2 * returns - 1)
    np.testing.assert_array_equal(np.flatnonzero(found.arrived), [4, 5])
    found = jax.tree.map(jnp.asarray, found)
    sample = once(lambda key: diffusion_veteran.sample_batch(parts, key, found))
    plan = np.asarray(sample(jax.random.key(0)).given.plan)
    still = [5.5, 2 * (0 - 1)], [4.5, -2.0]  # the goal of the last, 0 in raw units
    by_hand = {
        0: [[0, 0], [2, 2], still[1]],
        1: [[1, 1], [3, 3], still[0]],
        2: [[2, 2], still[1], still[0]],
        4: [[4, 4], still[0], still[0]],
        5: [[5, 5], still[0], still[0]],
        9: [[9, 9], [9, 9], [9, 9]],
    }
    for first, states in by_hand.items():
        windows = plan[plan[:, 0, 0] == first]
        assert len(windows) > 5
        np.testing.assert_allclose(windows, [states] * len(windows))


# Losses -------------------------------------------------------------------------------


def given(B=2, H=4):
    """Plans, labels and transitions of noise; the first transition ends its episode."""
    rng = np.random.default_rng(0)
    plan, label = rng.normal(size=(B, H, 2)), np.array([1.0, -0.5])
    seen, following = rng.normal(size=(2, B, 2))
    step = (seen, np.zeros((B, 2)), np.array([0.3, -2.0]), np.arange(B) % 2, following)
    return jax.tree.map(jnp.float32, Evidence(plan, label, Transition(*step)))


def test_planner_loss_by_hand():
    """A network of ones: each window weighs exp(2 (R - 1)), its first state nothing."""
    ones = SimpleNamespace(apply=lambda params, x, k: jnp.ones_like(x))
    parts, evidence = parts_of(weight=2.0)._replace(network=ones), given()
    noise = jax.random.normal(jax.random.key(1), (2, 4, 2))
    draws = Draws(jnp.array([3, 5]), noise, None, None)
    loss, _ = diffusion_veteran.planner_loss((), parts, evidence, draws)
    errors = np.square(np.asarray(noise) - 1)
    errors[:, 0] = 0
    expected = (errors[0].mean() + np.exp(-3.0) * errors[1].mean()) / 2
    assert loss == pytest.approx(expected, rel=1e-5)


def test_the_planner_sees_its_first_state_clean_and_the_rest_noisy():
    parts, evidence, seen = parts_of(), given(), []
    spy = SimpleNamespace(apply=lambda params, x, k: (seen.append(x), x)[1])
    noise = jax.random.normal(jax.random.key(1), (2, 4, 2))
    draws = Draws(jnp.array([3, 9]), noise, None, None)
    diffusion_veteran.planner_loss((), parts._replace(network=spy), evidence, draws)
    a, s = (c[np.array([3, 9]), None, None] for c in parts.schedule[1:])
    expected = a * np.asarray(evidence.plan) + s * np.asarray(noise)
    np.testing.assert_array_equal(seen[0][:, 0], evidence.plan[:, 0])
    np.testing.assert_allclose(seen[0][:, 1:], expected[:, 1:], rtol=1e-5, atol=1e-6)


def test_actor_loss_is_that_of_denoising_actions_between_two_states():
    """Its network predicts x_k times the sum of what it is told."""
    parts = parts_of(rebase=(0,))

    def predict(params, pair):
        return lambda x, k: x * pair.sum(axis=-1, keepdims=True)

    parts = parts._replace(actor=parts.actor._replace(predict=predict))
    state, following = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.5, 2.0]] * 2)
    pair = diffusion_veteran.pair_of(parts, state, following)
    # The first column as a difference.
    np.testing.assert_allclose(pair, [[0, 2, 0.5, 2], [0, 4, -1.5, 2]])
    action, noise = jax.random.normal(jax.random.key(2), (2, 2, 2))
    draws = Draws(None, None, jnp.array([0, 9]), noise)
    loss, _ = diffusion_veteran.actor_loss((), parts, Batch(None, pair, action), draws)
    a, s = (c[[0, 9], None] for c in parts.actor_schedule[1:])
    noisy = a * np.asarray(action) + s * np.asarray(noise)
    error = np.asarray(noise) - noisy * np.array([[4.5], [4.5]])
    assert loss == pytest.approx(np.square(error).mean(), rel=1e-4)


def test_value_losses_by_hand():
    evidence = given()
    value = parts_of(value="plan").value
    params = filled(value.network, evidence.plan)
    found, metrics = value.loss(params, (), evidence)
    of_plans = np.asarray(value.network.apply(params, evidence.plan))
    assert found == pytest.approx(np.square(of_plans - [1.0, -0.5]).mean(), rel=1e-5)
    assert metrics["return_mean"] == pytest.approx(0.25)

    value = parts_of(value="state", discount=0.9).value
    ours, theirs = (filled(value.network, jnp.zeros(2), seed=i) for i in (1, 2))
    found, _ = value.loss(ours, theirs, evidence)
    step = evidence.transition
    ahead = np.asarray(value.network.apply(theirs, step.next_observation))[:, 0]
    target = np.array([0.3 + 0, -2.0 + 0.9 * ahead[1]])  # the first one ends
    error = np.asarray(value.network.apply(ours, step.observation))[:, 0] - target
    assert found == pytest.approx(np.square(error).mean(), rel=1e-5)


def test_a_plan_is_worth_the_sum_of_its_states_behind_the_first():
    value = parts_of(value="state").value
    params, plans = filled(value.network, jnp.zeros(2)), given().plan
    each = np.asarray(value.network.apply(params, plans))[..., 0]
    np.testing.assert_allclose(
        value.score(params, plans), each[:, 1:].sum(axis=1), rtol=1e-5
    )


def test_averages_follow_and_the_value_stops_learning():
    """Networks of one number each; the value's average is a target network."""
    parts = parts_of(value="state", value_updates=1, tau=0.1, actor_ema_decay=0.75)
    plain = SimpleNamespace(apply=lambda params, x, k: params * x)
    actor = parts.actor._replace(predict=lambda params, pair: lambda x, k: params * x)
    value = parts.value._replace(loss=lambda params, *given: (jnp.square(params), {}))
    parts = parts._replace(network=plain, actor=actor, value=value)
    rules = parts.optimizer, value.optimizer, parts.actor_optimizer
    models = [start(jnp.ones(()), rule, averaged=True) for rule in rules]
    states = [TrainState(jnp.zeros((), jnp.int32), *models)]
    noise, k = jnp.ones((2, 4, 2)), jnp.zeros(2, jnp.int32)
    batch = Batch(given(), jnp.zeros((2, 4)), jnp.zeros((2, 2)))
    for _ in range(2):
        draws = Draws(k, noise, k, noise[:, 0])
        states.append(diffusion_veteran.update_step(parts, states[-1], batch, draws)[0])
    for name, rate in (("planner", 0.02), ("actor", 0.25), ("value", 0.1)):
        model, later = (getattr(state, name) for state in states[1:])
        moved = float(model.params) - 1
        assert moved != 0
        assert float(model.average) - 1 == pytest.approx(rate * moved, rel=1e-2)
        assert (later.params == model.params) == (name == "value")
    assert states[2].value.average == states[1].value.average
    now = states[1]
    expected = now.planner.average, now.value.params, now.actor.average
    assert diffusion_veteran.learned(now) == expected


# Plans --------------------------------------------------------------------------------


def dreams(parts, plans):
    """The parts with a planner that is sure of these plans, [N, H, S] or less."""
    signal, noise = (jnp.float32(column) for column in parts.schedule[1:])

    def apply(params, x, k):
        return (x - signal[k] * plans) / noise[k]

    return parts._replace(network=SimpleNamespace(apply=apply))


def likes(parts, score):
    """The parts with this value of plans."""
    value = parts.value._replace(score=lambda params, plans: score(plans))
    return parts._replace(value=value)


def carries_out(parts):
    """The parts with an actor whose action is s' - s, plus the noise of its start."""

    def sample(params, pair, draws):
        return pair[2:] - pair[:2] + draws.start + 0.0 * draws.noises.sum(axis=0)

    return parts._replace(actor=parts.actor._replace(sample=sample))


def test_the_plan_of_the_highest_value_is_followed():
    plans = jax.random.normal(jax.random.key(3), (5, 4, 2))
    here, key = jnp.array([0.2, -0.1, 9.0]), jax.random.key(0)
    for best in (3, 1):
        parts = parts_of(candidates=5, actor_temperature=0.0)
        liked = jnp.zeros(5).at[best].set(1.0)
        parts = likes(dreams(parts, plans), lambda found, liked=liked: liked)
        found = diffusion_veteran.plans(parts, NOTHING, here[:2], key)
        np.testing.assert_allclose(found[:, 1:], plans[:, 1:], atol=1e-4)
        np.testing.assert_allclose(found[:, 0], np.tile(here[:2], (5, 1)))
        acting = diffusion_veteran.acting(carries_out(parts))
        assert acting.follow is None
        rows, carry = acting.act(NOTHING, (), here[None], key)
        np.testing.assert_allclose(rows, [plans[best, 1] - here[:2]], atol=1e-4)
        assert carry == ()


def test_temperatures_multiply_what_plans_and_actions_begin_as():
    """A network without any opinion: the chain is linear in its start."""
    blind = SimpleNamespace(apply=lambda params, x, k: jnp.zeros_like(x))
    here, key, found = jnp.zeros(2), jax.random.key(4), []
    for temperature in (1.0, 0.25):
        parts = parts_of(temperature=temperature)._replace(network=blind)
        found.append(diffusion_veteran.plans(parts, NOTHING, here, key))
    np.testing.assert_allclose(found[1], found[0] / 4, rtol=1e-5)
    assert np.abs(found[0][:, 1:]).min() > 0
    row = jnp.concatenate([jnp.array([0.3, 0.1]), jnp.linspace(-1, 1, 22)])
    parts = carries_out(parts_of(actor_temperature=0.5))
    action = diffusion_veteran.follow(parts, NOTHING, row, jnp.array([0.1, 0.1, 7.0]))
    np.testing.assert_allclose(action, jnp.array([0.2, 0.0]) + row[2:4] / 2, rtol=1e-6)


def test_a_row_holds_the_noise_of_its_action():
    parts, begun = parts_of(actor_temperature=1.0), []
    spy = parts.actor._replace(
        sample=lambda params, pair, draws: (begun.append(draws), draws.start)[1]
    )
    noise = jax.random.normal(jax.random.key(5), (11, 2))
    row = jnp.concatenate([jnp.zeros(2), noise.ravel()])
    diffusion_veteran.follow(parts._replace(actor=spy), NOTHING, row, jnp.zeros(3))
    expected = ChainDraws(noise[0], noise[1:])
    jax.tree.map(np.testing.assert_array_equal, begun[0], expected)


def test_several_steps_aim_a_stride_ahead_along_the_plan():
    """Of a stride of 3: the second state, then a third of the way to the third, ..."""
    plan = jnp.array([[0.0, 0.0], [3.0, 1.0], [9.0, 4.0], [9.0, 10.0]])
    by_hand = [[3, 1], [5, 2], [7, 3], [9, 4], [9, 6], [9, 8], [9, 10]]
    parts = parts_of(execute=7, candidates=1, actor_temperature=0.0)
    np.testing.assert_allclose(diffusion_veteran.aims(parts, plan), by_hand, atol=1e-6)
    parts = carries_out(likes(dreams(parts, plan[None]), lambda plans: plans[:, 0, 0]))
    acting = diffusion_veteran.acting(parts)
    seen = jnp.array([[0.5, 0.0, 0.0]])
    rows, _ = acting.act(NOTHING, (), seen, jax.random.key(0))
    found = [acting.follow(NOTHING, row, seen[0]) for row in rows]
    np.testing.assert_allclose(found, np.subtract(by_hand, [0.5, 0.0]), atol=1e-4)


# A linear system ----------------------------------------------------------------------

LINE = DataSpec(1, 1, (-1.0,), (1.0,))


def walks():
    """x' = x + 0.2 u; an episode keeps its u, -0.8 or 0.8, and is paid x."""
    rng = np.random.default_rng(0)
    begin, u = rng.uniform(-1, 1, (40, 1)), 0.8 * (-1.0) ** np.arange(40)[:, None]
    x = begin + 0.2 * u * np.arange(13)
    action = np.broadcast_to(u, (40, 12))
    rows = (x[:, :-1], action, x[:, :-1], x[:, 1:], np.zeros_like(action))
    seen, acted, paid, following, ended = (row.reshape(-1) for row in rows)
    ends = 12 * np.arange(1, 41)
    return from_arrays(
        seen[:, None],
        acted[:, None],
        paid,
        following[:, None],
        ended,
        episode_ends=ends,
    )


def test_a_linear_system_is_planned_for_and_followed():
    """Both ways are likely; plans of the better one are chosen, and its u carried out.

    Two actions lie between two states of a plan.
    """
    config = dataclasses.replace(
        SMALL,
        stride=2,
        horizon=3,
        states=None,
        padding=False,
        value="plan",
        weight=0.0,
        planner_lr=5e-3,
        diffusion_steps=20,
        sample_steps=10,
        candidates=16,
        value_lr=2e-3,
    )
    agent = diffusion_veteran.make(config, LINE)
    parts = diffusion_veteran.build(config, LINE)
    data = jax.tree.map(jnp.asarray, agent.prepare(walks()))

    def update(state, key):
        batch_key, draw_key = jax.random.split(key)
        batch = agent.sample_batch(batch_key, data)
        return agent.update_step(state, batch, agent.draw(draw_key))[0], None

    @once
    def trained(key):
        keys = jax.random.split(key, 1500)
        learned = agent.learned(jax.lax.scan(update, agent.init(key), keys)[0])
        plans = diffusion_veteran.plans(parts, learned, jnp.zeros(1), key)
        act = functools.partial(agent.acting.act, learned, (), jnp.zeros((1, 1)))
        return plans[..., 0], jax.vmap(lambda key: act(key)[0])(keys[:16])[:, 0, 0]

    plans, actions = trained(jax.random.key(0))
    steps = np.diff(plans, axis=1)
    assert set(np.sign(steps[:, 0])) == {-1, 1}
    assert (np.abs(np.abs(steps) - 0.32) < 0.15).mean() > 0.7
    np.testing.assert_allclose(actions, 0.8, atol=0.25)


# Mistakes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 1}, "horizon must be at least 2"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"candidates": 0}, "candidates must be at least 1"),
        ({"execute": 8}, r"execute must be at most \(horizon - 2\) stride \+ 1, 7"),
        ({"states": 4}, "states must be 1 to 3"),
        ({"goal": (3,)}, "must name columns of the 3 of an observation"),
        ({"goal": (0, 1, 2)}, "at most as many as a state has"),
        ({"rebase": (2,)}, "must name columns of states, 0 to 1"),
        ({"value": "critic"}, "value must be one of"),
        ({"heads": 3}, "heads=3"),
        ({"step_dim": 12}, "step_dim must be a multiple of 8, got 12"),
        ({"weight": float("nan")}, "weight must be a finite number, got nan"),
        ({"sampler": "euler"}, "sampler must be one of"),
        ({"sample_steps": 0}, "sample_steps must be at least 1"),
        ({"actor_schedule": "none"}, "schedule must be one of"),
    ],
)
def test_wrong_settings_get_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        parts_of(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "paid", "message"),
    [
        ({"padding": False}, 1.0, "no episode is long enough for a window of 4"),
        ({"stride": 6}, 1.0, "no episode is long enough for a window of 6"),
        ({"goal": (2,)}, -1.0, "chosen by their returns, but all those"),
        ({}, 0.0, "chosen by their returns, but all those of the data are 0"),
    ],
)
def test_data_that_do_not_fit_get_one_line(changes, paid, message):
    data = episodes((5, 4))
    data = data._replace(reward=paid * data.reward)
    with pytest.raises(ValueError, match=message) as error:
        diffusion_veteran.prepare(parts_of(**changes), data)
    assert "\n" not in str(error.value)
