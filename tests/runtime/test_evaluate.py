"""Rollouts: independence of grouping, keys and seeds, bookkeeping, errors."""

from __future__ import annotations

import os
import subprocess
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.agents.base import Acting
from jdql.config import EvalConfig
from jdql.runtime import acting, distributed, evaluate
from jdql.types import DataSpec

HOPPER = DataSpec(11, 3, (-1.0,) * 3, (1.0,) * 3)
CONFIG = EvalConfig(env="Hopper-v5", env_kwargs={"max_episode_steps": 30})
SEEDS = [3, 11]


def by_current(act, reset=tuple):
    """A policy of the current observation, one action at a time."""

    def plan(learned, carry, observations, key):
        action, carry = act(learned, carry, observations[-1], key)
        return action[None], carry

    return Acting(plan, reset)


def evaluate_once(policy, learned, seeds, spec, config, progress=None, **options):
    with evaluate.Rollouts(policy, seeds, spec, config, **options) as rollouts:
        return rollouts(learned, progress=progress)


def layer(key, inputs, outputs):
    weight = jax.random.normal(key, (inputs, outputs)) / np.sqrt(inputs)
    return {"w": weight, "b": jnp.full(outputs, 0.1)}


def make_policy(seed, hidden=64):
    keys = jax.random.split(jax.random.key(seed), 6)
    sizes = [(11 + 3, hidden), (hidden, hidden), (hidden, 3)]
    critic = [(11 + 3, hidden), (hidden, hidden), (hidden, 1)]
    return {
        "actor": [layer(k, *s) for k, s in zip(keys[:3], sizes, strict=True)],
        "critic": [layer(k, *s) for k, s in zip(keys[3:], critic, strict=True)],
    }


def mlp(layers, x):
    for part in layers[:-1]:
        x = jax.nn.mish(x @ part["w"] + part["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def best_of_fifty(policy, carry, observation, key):
    """Five noisy refinements of 50 candidates, of which the critic draws one."""
    noise_key, choice_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (6, 50, 3))
    repeated = jnp.broadcast_to(observation, (50, 11))

    def refine(x, z):
        step = mlp(policy["actor"], jnp.concatenate([x, repeated], -1))
        return jnp.clip(0.7 * x + step + 0.3 * z, -1.0, 1.0), None

    actions, _ = jax.lax.scan(refine, noise[0], noise[1:])
    value = mlp(policy["critic"], jnp.concatenate([actions, repeated], -1))[:, 0]
    return actions[jax.random.categorical(choice_key, value)], carry


POLICY = by_current(best_of_fifty)


def stacked(seeds):
    return jax.tree.map(lambda *p: jnp.stack(p), *[make_policy(s) for s in seeds])


@pytest.fixture(scope="module")
def together():
    return evaluate_once(POLICY, stacked(SEEDS), SEEDS, HOPPER, CONFIG, episodes=4)


def test_episodes_differ_and_are_counted(together):
    assert together.returns.shape == together.lengths.shape == (2, 4)
    assert together.returns.dtype == np.float64
    assert len(np.unique(together.returns)) == 8
    assert together.lengths.max() <= 30
    assert len(np.unique(together.lengths)) > 2  # so finished ones were skipped


def test_one_at_a_time_is_equal_to_the_bit(together):
    for s, seed in enumerate(SEEDS):
        with evaluate.Rollouts(POLICY, [seed], HOPPER, CONFIG, episodes=4) as rollouts:
            seed_alone = rollouts(stacked([seed]))
        np.testing.assert_array_equal(seed_alone.returns[0], together.returns[s])
        for episode in (1, 3):
            alone = evaluate_once(
                POLICY, stacked([seed]), [seed], HOPPER, CONFIG, episodes=[episode]
            )
            assert alone.returns[0, 0] == together.returns[s, episode]
            assert alone.lengths[0, 0] == together.lengths[s, episode]


def test_a_plain_loop_is_equal_to_the_bit(together):
    act = jax.jit(best_of_fifty)
    environment = gymnasium.make("Hopper-v5", max_episode_steps=30)
    for s, seed in enumerate(SEEDS):
        policy = make_policy(seed)
        member_key = jax.random.fold_in(jax.random.key(seed), acting.EVALUATION)
        for episode in range(4):
            episode_key = jax.random.fold_in(member_key, episode)
            observation, _ = environment.reset(seed=100 + seed * 10_000 + episode)
            total, t, done = 0.0, 0, False
            while not done:
                key = jax.random.fold_in(episode_key, t)
                action, _ = act(policy, (), np.float32(observation), key)
                observation, reward, ended, late, _ = environment.step(
                    np.asarray(action)
                )
                total, t, done = total + reward, t + 1, ended or late
            assert total == together.returns[s, episode]
            assert t == together.lengths[s, episode]


def test_open_environments_repeat_themselves(together):
    with evaluate.Rollouts(POLICY, SEEDS, HOPPER, CONFIG, episodes=4) as rollouts:
        other = rollouts(stacked([5, 6]))
        again = rollouts(stacked(SEEDS))
    assert not np.array_equal(other.returns, together.returns)
    np.testing.assert_array_equal(again.returns, together.returns)


def test_several_cpu_devices_are_equal_to_the_bit(together, tmp_path):
    """Two here; one in a process that is set up as for a single member."""
    code = """if True:
        import importlib.util, sys
        from jdql.runtime import distributed
        distributed.configure(1)
        import jax, numpy as np
        spec = importlib.util.spec_from_file_location("shared", sys.argv[1])
        shared = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(shared)
        assert jax.device_count() == 1
        result = shared.evaluate_once(
            shared.POLICY, shared.stacked(shared.SEEDS), shared.SEEDS, shared.HOPPER,
            shared.CONFIG, episodes=4)
        np.savez(sys.argv[2], **result._asdict())
    """
    assert distributed.member_mesh(len(SEEDS)).size == 2
    done = subprocess.run(
        [sys.executable, "-c", code, __file__, str(tmp_path / "result.npz")],
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = np.load(tmp_path / "result.npz")
    np.testing.assert_array_equal(result["returns"], together.returns)
    np.testing.assert_array_equal(result["lengths"], together.lengths)


class Counter(gymnasium.Env):
    """Ends after 2 + (seed % 3) steps; the reward is what the action says."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-100.0, 100.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.t = seed, 0
        return np.array([seed % 10_000, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        assert self.t <= 2 + self.seed % 3, "a finished environment was stepped"
        observation = np.array([self.seed % 10_000, self.t], np.float32)
        return observation, float(action[0]), self.t == 2 + self.seed % 3, False, {}


class Goal(Counter):
    """The same, with the observation in a dictionary."""

    observation_space = gymnasium.spaces.Dict(
        {
            name: gymnasium.spaces.Box(-np.inf, np.inf, (1,))
            for name in ("observation", "achieved_goal", "desired_goal")
        }
    )

    def as_goal(self, observation):
        return {
            "desired_goal": np.array([-1.0]),
            "observation": observation[1:],
            "achieved_goal": observation[:1],
        }

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        return self.as_goal(observation), info

    def step(self, action):
        observation, *rest = super().step(action)
        return self.as_goal(observation), *rest


for name, maker in (("Counter", Counter), ("Goal", Goal)):
    gymnasium.register(f"jdql-test/{name}-v0", maker)

COUNTER = EvalConfig(env="jdql-test/Counter-v0", seed=0)
COUNTER_SPEC = DataSpec(2, 1, (-100.0,), (100.0,))


def scale_times_carry(policy, carry, observation, key):
    return (policy["scale"] * (carry + 10 * observation[1]))[None], carry + 1.0


@pytest.mark.parametrize("looped", [True, False])
def test_carries_observations_and_ends_by_hand(monkeypatch, looped):
    monkeypatch.setattr(distributed, "on_cpu", lambda: looped)
    policy = by_current(scale_times_carry, lambda: jnp.array(1.0))
    learned = {"scale": jnp.array([1.0, 2.0])}
    result = evaluate_once(
        policy, learned, [0, 1], COUNTER_SPEC, COUNTER, episodes=[0, 1, 2]
    )
    # Environment seeds are 0, 1, 2 and 10000, 10001, 10002: modulo 3 the latter are
    # 1, 2, 0.  At step t the action is scale * (1 + t + 10 t).
    np.testing.assert_array_equal(result.lengths, [[2, 3, 4], [3, 4, 2]])
    sums = {2: 1 + 12, 3: 1 + 12 + 23, 4: 1 + 12 + 23 + 34}
    expected = [[sums[n] for n in (2, 3, 4)], [2 * sums[n] for n in (3, 4, 2)]]
    np.testing.assert_array_equal(result.returns, expected)
    peaks = {2: 12, 3: 23, 4: 34}
    expected = [[peaks[n] for n in (2, 3, 4)], [2 * peaks[n] for n in (3, 4, 2)]]
    np.testing.assert_array_equal(result.peaks, expected)


# Plans and memory -----------------------------------------------------------------


class Fixed(Counter):
    """Four steps; a success is told at the third one."""

    def step(self, action):
        self.t += 1
        seen = np.array([0, self.t], np.float32)
        return seen, float(action[0]), self.t == 4, False, {"success": self.t == 3}


gymnasium.register("jdql-test/Fixed-v0", Fixed)
FIXED = EvalConfig(env="jdql-test/Fixed-v0", seed=0)


def three_at_a_time(learned, carry, observations, key):
    """Plans that tell when they were made, how often, and what was seen."""
    seen = observations[:, 1]  # the step of each of the last two observations
    first = 10 * seen[1] + seen[0] + 1000 * carry
    return (first + jnp.arange(3.0))[:, None], carry + 1


@pytest.mark.parametrize("looped", [True, False])
def test_plans_are_carried_out_before_the_next_one(monkeypatch, looped):
    monkeypatch.setattr(distributed, "on_cpu", lambda: looped)
    policy = Acting(three_at_a_time, lambda: jnp.array(0.0), history=2)
    result = evaluate_once(
        policy, {"none": jnp.zeros(2)}, [0, 1], COUNTER_SPEC, FIXED, episodes=2
    )
    # At first the only observation stands twice: plan 0, 1, 2.  At step 3 the second
    # plan begins, of observations 2 and 3: 1000 + 32.
    np.testing.assert_array_equal(result.returns, np.full((2, 2), 0 + 1 + 2 + 1032))
    np.testing.assert_array_equal(result.peaks, np.full((2, 2), 1032))
    np.testing.assert_array_equal(result.successes, np.ones((2, 2)))


@pytest.mark.parametrize("looped", [True, False])
def test_a_policy_is_asked_only_where_nothing_is_left(monkeypatch, looped):
    """One of two episodes begins anew in the middle of the other's plan."""
    monkeypatch.setattr(distributed, "on_cpu", lambda: looped)
    policy = Acting(three_at_a_time, lambda: jnp.array(0.0), history=2)
    mesh = distributed.member_mesh(1, jax.devices()[:1])
    player, asked = acting.Player(policy, [0], [0, 1], mesh), []
    plan = player._plan
    player._plan = lambda *inputs: (
        asked.append(int(inputs[0].count[0])) or plan(*inputs)
    )
    player.start({"none": jnp.zeros(1)})
    both, taken = np.ones((1, 2), bool), []
    for t in range(5):
        if t == 2:
            player.reset(np.array([[False, True]]))
        seen = np.array([[[0, t], [0, t if t < 2 else t - 2]]], np.float32)
        taken.append(player(seen, both)[0, :, 0].tolist())
    # The first plans at steps 0 and 3, the second at 0 and, begun anew, at 2.
    assert asked == [2, 1, 1]
    expected = [[0, 0], [1, 1], [2, 0], [1032, 1], [1033, 2]]
    np.testing.assert_array_equal(taken, expected)


def waypoints(learned, carry, observations, key):
    """Three waypoints behind where one is, not of the size of an action."""
    here = observations[-1, 1]
    points = here + jnp.array([[5.0], [7.0], [11.0]])
    return jnp.concatenate([points, jnp.full((3, 1), 100.0)], axis=1), carry + 1


def towards(learned, row, observation):
    return learned["gain"] * (row[:1] - observation[1:]) + row[1:]


@pytest.mark.parametrize("looped", [True, False])
def test_waypoints_are_followed_in_order_from_what_is_seen_by_then(monkeypatch, looped):
    monkeypatch.setattr(distributed, "on_cpu", lambda: looped)
    policy = Acting(waypoints, lambda: jnp.array(0.0), follow=towards)
    mesh = distributed.member_mesh(1, jax.devices()[:1])
    player, asked = acting.Player(policy, [3, 4], [0, 1], mesh), []
    plan = player._plan
    player._plan = lambda *inputs: (
        asked.append(inputs[0].count.tolist()) or plan(*inputs)
    )
    player.start({"gain": jnp.array([1.0, -2.0])})
    live, taken = np.array([[True, True], [False, True]]), []
    for place in (0, 4, 9, 10):
        at = np.array([[place, place + 0.5], [0, -place]], np.float32)
        seen = np.stack([np.zeros_like(at), at], axis=-1)
        taken.append(player(seen, live)[live][:, 0].tolist())
    assert asked == [[2, 1], [2, 1]]  # not once while waypoints are left
    # 5 - 0, 7 - 4, 11 - 9; then 5 ahead of 10 again.  The other member goes twice as
    # far the other way, from -4 to 7 in its second step and from -9 to 11 in its third.
    expected = [[105, 105, 90], [103, 103, 78], [102, 102, 60], [105, 105, 90]]
    np.testing.assert_array_equal(taken, expected)


def test_scores_are_of_the_quantity_that_the_task_names():
    result = evaluate.Evaluation(
        np.array([[2.5, 5.0]]),
        np.array([[3, 3]]),
        np.array([[1.0, 2.0]]),
        np.array([[0.0, 1.0]]),
    )

    def scored(**settings):
        return evaluate.scores(result, EvalConfig(env="e", **settings))

    assert scored() is None
    np.testing.assert_allclose(scored(reference="bandit"), [[50.0, 100.0]])
    np.testing.assert_allclose(scored(reference="bandit", score="peak"), [[20.0, 40.0]])
    np.testing.assert_allclose(scored(score="success"), [[0.0, 100.0]])
    silent = result._replace(successes=np.full((1, 2), np.nan))
    with pytest.raises(ValueError, match="reports none"):
        evaluate.scores(silent, EvalConfig(env="e", score="success"))
    with pytest.raises(ValueError, match=r"eval.score must be one of"):
        scored(score="sucess")


def test_vectorised_acting_agrees_with_the_loop(together, monkeypatch):
    monkeypatch.setattr(distributed, "on_cpu", lambda: False)
    config = EvalConfig(env="Hopper-v5", env_kwargs={"max_episode_steps": 3})
    policies = stacked(SEEDS)
    vectorised = evaluate_once(POLICY, policies, SEEDS, HOPPER, config, episodes=4)
    monkeypatch.undo()
    looped = evaluate_once(POLICY, policies, SEEDS, HOPPER, config, episodes=4)
    np.testing.assert_allclose(vectorised.returns, looped.returns, rtol=1e-4)


def test_goal_observations_are_flattened_as_the_data_is():
    def show(policy, carry, observation, key):
        return observation @ jnp.array([[100.0], [10.0], [1.0]]), carry

    spec = DataSpec(3, 1, (-100.0,), (100.0,))
    config = EvalConfig(env="jdql-test/Goal-v0", seed=0)
    policies = {"none": jnp.zeros(1)}
    result = evaluate_once(by_current(show), policies, [0], spec, config, episodes=[1])
    # achieved 1, observed t, desired -1 at t = 0, 1, 2
    assert result.returns[0, 0] == 99 + 109 + 119


def test_keys_are_the_episodes_own():
    keys = acting.episode_keys([7, 8], [0, 5])
    expected = jax.random.fold_in(jax.random.key(8), acting.EVALUATION)
    assert keys[1, 1] == jax.random.fold_in(expected, 5)
    assert len(np.unique(jax.random.key_data(keys).reshape(4, -1), axis=0)) == 4


def test_progress_sees_episodes_finish():
    policy = by_current(scale_times_carry, lambda: jnp.array(1.0))
    learned, seen = {"scale": jnp.ones(1)}, []
    evaluate_once(
        policy,
        learned,
        [0],
        COUNTER_SPEC,
        COUNTER,
        episodes=3,
        progress=lambda *at: seen.append(at),
    )
    assert seen == [(0, 3), (1, 3), (2, 2), (3, 1)]


def test_a_non_finite_action_names_seed_step_and_episode():
    def broken(policy, carry, observation, key):
        return jnp.where(observation[1] == 1, jnp.nan, jnp.zeros(1)), carry

    with pytest.raises(ValueError, match=r"seed 9 .*step 1 of episode 0"):
        evaluate_once(
            by_current(broken),
            {"none": jnp.zeros(1)},
            [9],
            COUNTER_SPEC,
            COUNTER,
            episodes=1,
        )


@pytest.mark.parametrize(
    ("changes", "spec", "message"),
    [
        ({"episodes": 0}, HOPPER, "episodes must be 1 to 10000"),
        ({"env": "CartPole-v1"}, HOPPER, "has actions of the kind Discrete"),
        ({}, HOPPER._replace(observation_dim=17), "has observations of 11 numbers"),
        ({}, HOPPER._replace(action_dim=6), "has actions of 3 numbers"),
    ],
)
def test_mistakes_get_one_line(changes, spec, message):
    config = EvalConfig(**({"env": "Hopper-v5", "episodes": 1} | changes))
    with pytest.raises(ValueError, match=message) as error:
        evaluate.Rollouts(POLICY, [0], spec, config)
    assert "\n" not in str(error.value)


def test_versions_name_the_simulator():
    import mujoco

    found = evaluate.versions()
    assert found["mujoco"] == mujoco.__version__
    assert found["gymnasium"] == gymnasium.__version__
    assert found["jax"] == jax.__version__
