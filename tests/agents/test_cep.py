"""CEP: targets and losses by hand, and the energy of a Gaussian in closed form."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdql.agents import cep, diffusion_bc
from jdql.agents.base import Given
from jdql.diffusion import schedules
from jdql.types import DataSpec, Transition

pytestmark = pytest.mark.usefixtures("unoptimised")

SPEC = DataSpec(3, 2, (-1.0, -1.0), (1.0, 1.0))
B, N = 4, 6


@functools.cache
def behaviour(spec: DataSpec = SPEC) -> Given:
    agent = diffusion_bc.make(diffusion_bc.Config().tiny(), spec)
    return Given(agent, agent.learned(jax.jit(agent.init)(jax.random.key(9))))


def tiny(**changes) -> cep.Config:
    small = cep.Config(batch_size=B, **changes).tiny()
    return cep.dataclasses.replace(small, batch_size=B, support=N)


def batch() -> Transition:
    keys = jax.random.split(jax.random.key(3), 3)
    return Transition(
        observation=jax.random.normal(keys[0], (B, 3)),
        action=jnp.clip(jax.random.normal(keys[1], (B, 2)), -1, 1),
        reward=jnp.array([1.0, -2.0, 0.5, 3.0]),
        mask=jnp.array([1.0, 1.0, 0.0, 1.0]),
        next_observation=jax.random.normal(keys[2], (B, 3)),
    )


@functools.cache
def one_update():
    """A state whose target critic is not its critic, and its update."""
    config, given = tiny(), {"behaviour": behaviour()}
    agent = cep.make(config, SPEC, given)
    init = jax.jit(agent.init)
    state, other = init(jax.random.key(0)), init(jax.random.key(1))
    critic = state.critic._replace(average=other.critic.params)
    state = state._replace(critic=critic)
    draws = agent.draw(jax.random.key(5))
    new, metrics = jax.jit(agent.update_step)(state, batch(), draws)
    return cep.build(config, given), state, draws, new, metrics


def test_the_value_of_a_support_by_hand():
    q = jnp.array([[0.0, jnp.log(3.0)]])  # weights 1/4 and 3/4
    np.testing.assert_allclose(cep.in_support_value(q, 1.0), [0.75 * np.log(3)])
    np.testing.assert_allclose(cep.in_support_value(q, 0.0), [0.5 * np.log(3)])
    np.testing.assert_allclose(cep.in_support_value(q, 1e3), [np.log(3)], rtol=1e-6)


def test_the_losses_of_an_update_by_hand():
    parts, state, draws, new, metrics = one_update()
    b, actor = batch(), parts.behaviour.agent.model.actor

    def sampled(observation, draws):
        seen = jnp.repeat(observation[:, None], N, axis=1)
        return seen, actor.sample(parts.behaviour.learned, seen, draws)

    def smaller(params, seen, action):
        return np.asarray(parts.critic.apply(params, seen, action).min(axis=0))

    q = smaller(state.critic.average, *sampled(b.next_observation, draws.next_support))
    weights = np.exp(3 * q) / np.exp(3 * q).sum(axis=1, keepdims=True)
    target = b.reward + 0.99 * b.mask * (weights * q).sum(axis=1)
    both = parts.critic.apply(state.critic.params, b.observation, b.action)
    squares = np.mean((np.asarray(both) - np.asarray(target)) ** 2)
    assert metrics["critic_loss"].item() == pytest.approx(squares, rel=1e-4)

    # The energy learns from the target critic of after the update.
    seen, support = sampled(b.observation, draws.support)
    q = smaller(new.critic.average, seen, support)
    label = np.exp(3 * q) / np.exp(3 * q).sum(axis=1, keepdims=True)
    signal, noise = (np.float32(t)[draws.k][:, None, None] for t in parts.schedule[1:])
    time = (draws.k[:, None] + 1) / parts.schedule.steps
    energy = parts.energy.apply(
        state.energy.params, signal * support + noise * draws.noise, time, seen
    )
    log_softmax = np.asarray(jax.nn.log_softmax(energy, axis=1))
    loss = -np.mean(np.sum(label * log_softmax, axis=1))
    assert metrics["energy_loss"].item() == pytest.approx(loss, rel=1e-4)


def test_the_behaviour_is_saved_along_but_never_moved():
    _, state, _, new, _ = one_update()
    assert set(new._fields) == {"step", "critic", "energy", "value"}
    frequencies = (
        s.energy.params["params"]["frequencies"] for s in (state, new)
    )  # drawn once
    np.testing.assert_array_equal(*frequencies)


def test_critics_stop_after_their_updates():
    agent = cep.make(tiny(critic_updates=1), SPEC, {"behaviour": behaviour()})
    update = jax.jit(agent.update_step)
    start = jax.jit(agent.init)(jax.random.key(0))
    first, _ = update(start, batch(), agent.draw(jax.random.key(1)))
    second, _ = update(first, batch(), agent.draw(jax.random.key(2)))

    def moved(one, other):
        leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
        return any(bool((a != b).any()) for a, b in leaves)

    assert moved(start.critic, first.critic)
    assert not moved(first.critic, second.critic)
    assert moved(first.energy, second.energy)


def test_critics_of_iql_sample_no_next_actions():
    agent = cep.make(tiny(critic="iql"), SPEC, {"behaviour": behaviour()})
    draws = agent.draw(jax.random.key(1))
    assert draws.next_support.start.size == 0
    start = jax.jit(agent.init)(jax.random.key(0))
    new, metrics = jax.jit(agent.update_step)(start, batch(), draws)
    assert np.isfinite(metrics["value_loss"])
    assert not np.array_equal(
        *(s.value.params["params"]["Dense_0"]["kernel"] for s in (start, new))
    )


def test_settings_out_of_range_are_refused():
    given = {"behaviour": behaviour()}
    for settings, message in (
        ({"support": 1}, "support must be at least 2, got 1"),
        ({"critic": "td3"}, r"critic must be one of \['in_support', 'iql'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            cep.make(cep.Config(**settings), SPEC, given)


# A Gaussian behaviour and a linear Q -------------------------------------------------

LINE = DataSpec(1, 1, (-9.0,), (9.0,))
MEAN, STD, SLOPE, ALPHA = 0.5, 0.4, 1.0, 2.0


def test_the_energy_of_a_gaussian_is_the_exact_tilt():
    """With a ~ N(m, s^2) and Q = c a, log E[exp(alpha Q) | a_k] is linear in a_k.

    Its slope is alpha c times that of E[a | a_k], which is
    signal s^2 / (signal^2 s^2 + noise^2).
    """
    config = cep.dataclasses.replace(
        cep.Config(alpha=ALPHA, hidden=(2,), energy_hidden=(64, 64), time_dim=8),
        batch_size=256,
        support=16,
    )
    parts = cep.build(config, {"behaviour": behaviour(LINE)})
    parts = parts._replace(schedule=schedules.make_schedule("vp", 5))
    observation = jnp.zeros((256, 1))
    # Q(s, a) = c (relu(a) - relu(-a)), for both critics.
    critic = parts.critic.init(jax.random.key(0), observation[:1], observation[:1])
    layers = critic["params"]["q"]
    enter = jnp.array([[0.0, 0.0], [1.0, -1.0]])
    layers["Dense_0"] = {"kernel": jnp.stack([enter] * 2), "bias": jnp.zeros((2, 2))}
    leave = SLOPE * jnp.array([[1.0], [-1.0]])
    layers["Dense_1"] = {"kernel": jnp.stack([leave] * 2), "bias": jnp.zeros((2, 1))}
    q = parts.smaller_q(critic, observation[:2], jnp.array([[-0.3], [0.7]]))
    np.testing.assert_allclose(q, [-0.3 * SLOPE, 0.7 * SLOPE], rtol=1e-5)

    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 1500))

    def update(carry, key):
        params, opt = carry
        keys = jax.random.split(key, 3)
        support = MEAN + STD * jax.random.normal(keys[0], (256, 16, 1))
        k = jax.random.randint(keys[1], (256,), 0, 5)
        noise = jax.random.normal(keys[2], (256, 16, 1))
        gradients = jax.grad(cep.energy_loss, has_aux=True)(
            params, parts, critic, observation, support, k, noise
        )[0]
        updates, opt = optimizer.update(gradients, opt)
        return (optax.apply_updates(params, updates), opt), None

    params = parts.energy.init(
        jax.random.key(1), observation[:1], jnp.zeros(1), observation[:1]
    )
    keys = jax.random.split(jax.random.key(2), 1500)
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(update, c, keys))(
        (params, optimizer.init(params))
    )
    signal, noise = parts.schedule.signal, parts.schedule.noise
    for k in range(4):
        # Where the noised actions lie: the mean and a deviation to either side.
        spread = np.sqrt((signal[k] * STD) ** 2 + noise[k] ** 2)
        at = signal[k] * MEAN + spread * jnp.array([[-1.0], [0.0], [1.0]])
        time = jnp.float32(parts.times[k])
        energy = parts.energy.apply(params, at, time, jnp.zeros((3, 1)))
        slope = (energy[2] - energy[0]) / (2 * spread)
        exact = ALPHA * SLOPE * signal[k] * STD**2 / spread**2
        # A group of 16 makes softmax weights flatter than exp(alpha Q) by a little.
        assert float(slope) == pytest.approx(exact, rel=0.12), k
