"""The numbers of Diffusion-QL's authors: same parameters, batches and noise in."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.agents import actors, diffusion_bc, diffusion_ql
from jdql.diffusion import reverse
from jdql.diffusion.schedules import BETAS
from jdql.networks.mlp import NoiseNetwork
from jdql.rl.selection import choice_probabilities
from jdql.types import DataSpec, Transition
from tests.agents.programs import once
from tests.agents.recorded import compare, files, tables
from tests.agents.recorded.files import Arrays, Reader, data_spec, names, setting

FILES = files.files("goldens", "JDQL_GOLDENS")
KINDS = {file: files.kind(file) for file in FILES}
CASES = [file for file in FILES if KINDS[file] in ("ql", "bc")]
TABLES = [file for file in FILES if not KINDS[file]]
OTHERS = set(FILES).difference(CASES, TABLES)
SKIPPED = {file: f"of another system: {KINDS[file]}" for file in sorted(OTHERS)}


# Parameters, in PyTorch's names and layout. -------------------------------------------


def dense(arrays: Arrays, name: str):
    return {
        "kernel": jnp.asarray(arrays[f"{name}.weight"].T),
        "bias": jnp.asarray(arrays[f"{name}.bias"]),
    }


def layers(arrays: Arrays, prefix: str) -> list[str]:
    """Names of the layers below `prefix`, in the order of their numbers."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.weight$")
    found = {int(m[1]) for key in arrays if (m := pattern.match(key))}
    return [f"{prefix}.{index}" for index in sorted(found)]


def mlp(arrays: Arrays, layers: list[str]):
    return {f"Dense_{i}": dense(arrays, name) for i, name in enumerate(layers)}


def actor_params(arrays: Arrays, prefix: str):
    body = [*layers(arrays, f"{prefix}/model.mid_layer"), f"{prefix}/model.final_layer"]
    step = layers(arrays, f"{prefix}/model.time_mlp")
    return {"params": {"step": mlp(arrays, step), "body": mlp(arrays, body)}}


def critic_params(arrays: Arrays, prefix: str):
    heads = [mlp(arrays, layers(arrays, f"{prefix}/q{i}_model")) for i in (1, 2)]
    return {"params": {"q": jax.tree.map(lambda *heads: jnp.stack(heads), *heads)}}


def models(arrays: Arrays, when: str) -> dict:
    """Field of the TrainState -> (parameters, average)."""
    if setting(arrays, "algo") == "bc":
        return {"actor": (actor_params(arrays, f"{when}/actor"), ())}
    actor = [actor_params(arrays, f"{when}/{n}") for n in ("actor", "actor_ema")]
    critic = [critic_params(arrays, f"{when}/{n}") for n in ("critic", "critic_target")]
    return {"actor": tuple(actor), "critic": tuple(critic)}


# Settings and draws. ------------------------------------------------------------------


def common(arrays: Arrays) -> dict:
    hidden = len(layers(arrays, "init/actor/model.mid_layer"))
    width = arrays["init/actor/model.final_layer.weight"].shape[1]
    return dict(
        lr=setting(arrays, "lr"),
        batch_size=setting(arrays, "batch"),
        diffusion_steps=setting(arrays, "n_timesteps"),
        schedule=setting(arrays, "beta_schedule"),
        hidden=(width,) * hidden,
        step_dim=arrays["init/actor/model.time_mlp.1.weight"].shape[1],
    )


def config_of(arrays: Arrays) -> diffusion_ql.Config | diffusion_bc.Config:
    if setting(arrays, "algo") == "bc":
        return diffusion_bc.Config(**common(arrays))
    grad_norm = setting(arrays, "grad_norm")
    return diffusion_ql.Config(
        **common(arrays),
        eta=setting(arrays, "eta"),
        grad_norm=grad_norm if grad_norm > 0 else None,
        max_q_backup=setting(arrays, "max_q_backup"),
        discount=setting(arrays, "discount"),
        tau=setting(arrays, "tau"),
        ema_every=setting(arrays, "update_ema_every"),
        ema_start=setting(arrays, "step_start_ema"),
    )


def parts_of(config, spec: DataSpec):
    """The agent's parts, with tables that are rounded as theirs where it matters."""
    is_ql = isinstance(config, diffusion_ql.Config)
    parts = (diffusion_ql if is_ql else diffusion_bc).build(config, spec)
    if not tables.loses_digits(parts.schedule.beta):
        return parts
    rounded = tables.in_single_precision(parts.schedule.beta)
    to_bounds = parts.actor.to_bounds
    network = NoiseNetwork(spec.action_dim, config.hidden, config.step_dim)
    sampler = tables.rounded_sampler(rounded, to_bounds, of_result=to_bounds)
    actor = actors.diffusion(network, spec, sampler)
    replaced = {"actor": actor, "chain": actor} if is_ql else {"actor": actor}
    return parts._replace(schedule=rounded.process, **replaced)


def batch_at(arrays: Arrays, i: int) -> Transition:
    column = {name: arrays[f"batch/{name}"][i] for name in ("rewards", "not_done")}
    return Transition(
        observation=jnp.asarray(arrays["batch/observations"][i]),
        action=jnp.asarray(arrays["batch/actions"][i]),
        reward=jnp.asarray(column["rewards"][:, 0]),
        mask=jnp.asarray(column["not_done"][:, 0]),
        next_observation=jnp.asarray(arrays["batch/next_observations"][i]),
    )


def draws_of(reader: Reader, config):
    if isinstance(config, diffusion_bc.Config):
        return diffusion_bc.Draws(reader.steps(), reader.next("normal"))
    return diffusion_ql.Draws(
        target=reader.chain(config.diffusion_steps),
        k=reader.steps(),
        noise=reader.next("normal"),
        improvement=reader.chain(config.diffusion_steps),
        coin=reader.next("coin"),
    )


# The comparison. ----------------------------------------------------------------------


def run_case(arrays: Arrays):
    """Trains as the case says; returns the settings, the last state and metrics."""
    config, spec = config_of(arrays), data_spec(arrays)
    module = diffusion_bc if setting(arrays, "algo") == "bc" else diffusion_ql
    parts, key = parts_of(config, spec), jax.random.key(0)
    inputs = (parts, key) if module is diffusion_bc else (parts, spec, key)
    shapes = jax.eval_shape(lambda: module.init(*inputs))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    state = state._replace(
        step=jnp.asarray(setting(arrays, "first_step"), jnp.int32),
        **{
            field: getattr(state, field)._replace(params=params, average=average)
            for field, (params, average) in models(arrays, "init").items()
        },
    )
    update = once(functools.partial(module.update_step, parts))
    reader, rows = Reader(arrays), []
    for i in range(setting(arrays, "steps")):
        state, metrics = update(state, batch_at(arrays, i), draws_of(reader, config))
        rows.append(metrics)
    reader.finish()
    return config, state, rows


RENAMED = {
    "ql_loss": "q_loss",
    "grad_norm_critic": "critic_grad_norm",
    "grad_norm_actor": "actor_grad_norm",
}


@pytest.mark.parametrize("file", files.parameters(CASES, SKIPPED))
def test_training_agrees_with_the_authors(file: Path):
    arrays = files.load(file)
    config, state, rows = run_case(arrays)
    # Where there is no critic, the authors' code logs zeros for all but this.
    is_bc = setting(arrays, "algo") == "bc"
    stored = ["bc_loss"] if is_bc else names(arrays, "metric/")
    for name, i in itertools.product(stored, range(len(rows))):
        metric, expected = rows[i][RENAMED.get(name, name)], arrays[f"metric/{name}"][i]
        compare.assert_close(metric, expected, 2e-5, f"{name}, update {i}")
    for field, (params, average) in models(arrays, "final").items():
        model = getattr(state, field)
        rate = config.critic_lr if field == "critic" else config.lr
        pairs = {field: (model.params, params, rate)}
        compare.assert_same_parameters(pairs, len(rows))
        if average != ():
            pairs = {f"average of {field}": (model.average, average, rate)}
            compare.assert_same_parameters(pairs, len(rows))


@pytest.mark.parametrize("file", files.parameters(f for f in CASES if KINDS[f] == "ql"))
def test_acting_agrees_with_the_authors(file: Path):
    arrays = files.load(file)
    config, final = config_of(arrays), models(arrays, "final")
    parts = parts_of(config, data_spec(arrays))
    networks = final["actor"][0], final["critic"][1]  # online actor, target critic

    @once
    def act(actor, critic, observation, draws):
        actions = parts.actor.sample(actor, observation, draws)
        q = jnp.min(parts.critic.apply(critic, observation, actions), axis=0)
        chances = choice_probabilities(q)
        return {"actions": actions, "q_min": q, "probabilities": chances}

    draws = Reader(arrays, "act/draw/").chain(config.diffusion_steps)
    observation = jnp.asarray(arrays["act/observation"])
    repeated = jnp.repeat(observation, len(draws.start), axis=0)
    for name, value in act(*networks, repeated, draws).items():
        compare.assert_close(value, arrays[f"act/{name}"], 2e-5, name)


@pytest.mark.parametrize("file", files.parameters(TABLES))
def test_schedules_agree_with_the_authors(file: Path):
    for key, betas in files.load(file).items():
        name, steps = key.split("/")
        np.testing.assert_allclose(BETAS[name](int(steps)), betas, rtol=0, atol=1e-12)


# The linear schedule, of which float32 loses digits. ----------------------------------


def authors_chain(betas: np.ndarray, predict, draws: reverse.ChainDraws) -> np.ndarray:
    """Their `p_sample_loop` in numpy, every table and every step in float32."""
    one, beta = np.float32(1), betas.astype(np.float32)
    abar = np.cumprod(one - beta)
    before = np.concatenate([[one], abar[:-1]])
    deviation = np.sqrt(beta * (one - before) / (one - abar))
    x = np.asarray(draws.start)
    for k, noise in zip(reversed(range(len(beta))), draws.noises, strict=True):
        x0 = np.sqrt(one / abar[k]) * x - np.sqrt(one / abar[k] - one) * predict(x, k)
        mean = beta[k] * np.sqrt(before[k]) / (one - abar[k]) * np.clip(x0, -1, 1)
        mean += (one - before[k]) * np.sqrt(one - beta[k]) / (one - abar[k]) * x
        x = mean + deviation[k] * np.asarray(noise)
    return np.clip(x, -1, 1)


def test_the_linear_chain_is_theirs_with_rounded_tables():
    spec = DataSpec(3, 2, (-1.0, -1.0), (1.0, 1.0))
    config = diffusion_ql.Config(hidden=(16,), schedule="linear", diffusion_steps=20)
    own, rounded = diffusion_ql.build(config, spec), parts_of(config, spec)
    # Large weights, so that many estimates are clipped.
    params = jax.tree.map(
        lambda leaf: 3 * leaf, once(own.actor.init)(jax.random.key(0))
    )
    predict = once(own.actor.predict(params, jnp.ones((200, 3))))

    @once
    def drawn(key):
        draws = own.actor.draw(key, (200,))
        samples = (
            p.actor.sample(params, jnp.ones((200, 3)), draws) for p in (own, rounded)
        )
        return draws, *samples

    draws, by_own, by_rounded = drawn(jax.random.key(1))
    theirs = authors_chain(
        own.schedule.beta, lambda *inputs: np.asarray(predict(*inputs)), draws
    )
    assert np.abs(by_rounded - theirs).max() < 1e-5
    # The difference that `schedules.linear_betas` names.
    assert 1e-4 < np.abs(by_own - theirs).max() < 2e-4
