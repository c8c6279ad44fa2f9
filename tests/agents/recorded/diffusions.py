"""Recorded systems whose actor is a diffusion: EDP, DAC and IDQL."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdql.agents import actors, critics, dac, edp, idql
from jdql.diffusion import approximation, reverse, schedules
from jdql.networks.mlp import NoiseNetwork, value_function
from jdql.rl import expectile, selection
from tests.agents.recorded import tables
from tests.agents.recorded.files import Arrays, Reader, data_spec, setting, tree
from tests.agents.recorded.system import (
    Models,
    System,
    ensemble,
    greedily,
    mlp,
    observations,
    with_target,
)

# Noise networks. ----------------------------------------------------------------------


def noise_schedule(config: Any, arrays: Arrays) -> schedules.Schedule:
    """That of their float32 betas, which are ours but for the rounding."""
    own = schedules.make_schedule(config.schedule, config.diffusion_steps)
    np.testing.assert_allclose(own.beta, arrays["table/betas"], rtol=0, atol=2e-7)
    return tables.in_single_precision(arrays["table/betas"]).process


def noise_network(config: Any, arrays: Arrays) -> NoiseNetwork:
    """Ours, told of the diffusion step what theirs is."""
    features = jnp.asarray(arrays["table/step_features"])
    return NoiseNetwork(
        setting(arrays, "act_dim"),
        config.hidden,
        features.shape[1],
        features=lambda k, dim: features[k],
    )


def noise_mlp(arrays: Arrays, prefix: str) -> dict:
    """Theirs takes [observation, x_k, features], ours [x_k, features, observation]."""
    layers = tree(arrays, prefix)
    first = layers["body"]["Dense_0"]
    kernel = jnp.roll(first["kernel"], -setting(arrays, "obs_dim"), axis=0)
    layers["body"]["Dense_0"] = {**first, "kernel": kernel}
    return {"params": {"step": layers["time"], "body": layers["body"]}}


# EDP. ---------------------------------------------------------------------------------

EDP_SETTINGS = {
    "alpha": "eta",
    "awr_temperature": "inverse_temperature",
    "crr_beta": "crr_temperature",
    "crr_ratio_upper_bound": "crr_max_weight",
    "diff_coef": "bc_weight",
    "guide_coef": "guide_weight",
    "policy_tgt_freq": "ema_every",
    "policy_tgt_start": "ema_start",
}


def edp_parts(arrays: Arrays, config: edp.Config) -> edp.Parts:
    named = "scaled_linear" if config.schedule == "linear" else config.schedule
    full = {"schedule": named, "sampler": "ancestral", "sample_steps": None}
    config, spec = dataclasses.replace(config, **full), data_spec(arrays)
    if config.rule == "td3":  # their TD3 does not read diff_coef
        config = dataclasses.replace(config, bc_weight=1.0)
    if config.rule == "iql":  # nor does their IQL know the evidence bound
        config = dataclasses.replace(config, likelihood="fixed_std")
    parts, schedule = edp.build(config, spec), noise_schedule(config, arrays)
    sampler = actors.full_chain(config, spec, schedule)
    if tables.loses_digits(arrays["table/betas"]):
        rounded = tables.in_single_precision(arrays["table/betas"])
        sampler = tables.rounded_sampler(rounded, parts.actor.to_bounds)
    if config.likelihood == "fixed_std":
        parts = parts._replace(likelihood=with_constant)
    actor = actors.diffusion(noise_network(config, arrays), spec, sampler)
    return parts._replace(schedule=schedule, actor=actor)


def with_constant(schedule, x0, estimate, error, k):
    """The Gaussian's log-likelihood with its constant, which has no gradient."""
    free = approximation.fixed_std(schedule, x0, estimate, error, k)
    return free - 0.5 * x0.shape[-1] * math.log(2 * math.pi)


def twins(arrays: Arrays, prefix: str) -> dict:
    """Two critics in one ensemble."""
    each = tree(arrays, prefix)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), each["q1"], each["q2"])
    return {"params": {"q": stacked}}


def edp_models(arrays: Arrays, when: str) -> Models:
    models = {
        "actor": with_target(noise_mlp, arrays, f"{when}/actor"),
        "critic": with_target(twins, arrays, f"{when}/critic"),
    }
    if setting(arrays, "rule") == "iql":
        models["value"] = mlp(arrays, f"{when}/value"), ()
    return models


def edp_draws(reader: Reader, arrays: Arrays, config: edp.Config) -> edp.Draws:
    B, A, K = config.batch_size, setting(arrays, "act_dim"), config.diffusion_steps
    none = reverse.ChainDraws(jnp.zeros((0, A)), jnp.zeros((K, 0, A)))
    return edp.Draws(
        none if config.rule == "iql" else reader.chain(K),
        reader.steps(),
        reader.next("normal"),
        reader.next("coin") if config.rule == "td3" else jnp.zeros(()),
        reader.next("normal") if config.rule == "crr" else jnp.zeros((0, B, A)),
    )


def edp_more(parts: edp.Parts, old: Any, new: Any, batch: Any, draws: Any):
    """Gradient norms of each critic, whose value is the one of after its step."""
    judged = old._replace(value=new.value)
    gradient, _ = jax.grad(parts.critic_loss, has_aux=True)(
        old.critic.params, parts, judged, batch, draws
    )
    first, second = jax.vmap(optax.tree.norm)(gradient)
    return {"grad_norm_q1": first, "grad_norm_q2": second}


def edp_act(parts: edp.Parts, learned: Any, arrays: Arrays, draws: Reader):
    chain = draws.chain(parts.schedule.steps)
    seen = observations(arrays, len(chain.start))
    actions = parts.actor.sample(learned.actor, seen, chain)
    q = parts.smaller_q(learned.critic, seen, actions)
    shares = selection.choice_probabilities(q)
    return {"actions": actions, "q_min": q, "probabilities": shares}


# DAC. ---------------------------------------------------------------------------------


def dac_parts(arrays: Arrays, config: dac.Config) -> dac.Parts:
    spec, schedule = data_spec(arrays), noise_schedule(config, arrays)
    chain = actors.full_chain(config, spec, schedule)
    actor = actors.diffusion(noise_network(config, arrays), spec, chain)
    parts = dac.build(config, spec)
    return parts._replace(schedule=schedule, actor=actor, chain=actor)


def dac_models(arrays: Arrays, when: str) -> Models:
    return {
        "actor": with_target(noise_mlp, arrays, f"{when}/actor"),
        "critic": with_target(ensemble, arrays, f"{when}/critic"),
    }


def dac_draws(reader: Reader, arrays: Arrays, config: dac.Config) -> dac.Draws:
    chain = reader.chain(config.diffusion_steps)
    return dac.Draws(chain, reader.steps(), reader.next("normal"))


def dac_more(parts: dac.Parts, old: Any, new: Any, batch: Any, draws: Any):
    return {"eta_before": old.eta}


def dac_act(parts: dac.Parts, learned: Any, arrays: Arrays, draws: Reader):
    chain = draws.chain(parts.schedule.steps)
    seen = observations(arrays, len(chain.start))
    actions = parts.actor.sample(learned.actor, seen, chain)
    q = jnp.mean(parts.critic.apply(learned.critic, seen, actions), axis=0)
    return {"action": greedily(actions, q)}


# IDQL. --------------------------------------------------------------------------------


def idql_parts(arrays: Arrays, config: idql.Config) -> idql.Parts:
    spec, schedule = data_spec(arrays), noise_schedule(config, arrays)
    parts = idql.build(config, spec)
    sampler = idql.clipping_sampler(config, spec, schedule)
    actor = actors.diffusion(parts.network, spec, sampler)
    return parts._replace(schedule=schedule, actor=actor)


def residual(arrays: Arrays, prefix: str) -> dict:
    """Names of the residual network's layers, changed to ours."""
    layers = tree(arrays, prefix)
    time = layers.pop("time")
    renamed = {n.replace("block", "ResidualBlock"): v for n, v in layers.items()}
    return {"params": {**renamed, **time}}


def idql_models(arrays: Arrays, when: str) -> Models:
    return {
        "actor": with_target(residual, arrays, f"{when}/actor"),
        "critic": with_target(ensemble, arrays, f"{when}/critic"),
        "value": (mlp(arrays, f"{when}/value"), ()),
    }


def idql_draws(reader: Reader, arrays: Arrays, config: idql.Config) -> idql.Draws:
    k, noise = reader.steps(), reader.next("normal")
    keep = jnp.stack([reader.next("keep") for _ in range(config.blocks)])
    return idql.Draws(k, noise, keep / (1 - config.dropout))


def idql_more(parts: idql.Parts, old: Any, new: Any, batch: Any, draws: Any):
    v = value_function(parts.value)(old.value.params, batch.observation)
    q = parts.critic.apply(old.critic.params, batch.observation, batch.action)
    return {"v_mean_before": jnp.mean(v), "q_online_mean": jnp.mean(q)}


def idql_act(parts: idql.Parts, learned: Any, arrays: Arrays, draws: Reader):
    chain = draws.chain(parts.schedule.steps)
    seen = observations(arrays, len(chain.start))
    actions = parts.actor.sample(learned.actor, seen, chain)
    q = critics.smaller_q(parts.critic)(learned.critic, seen, actions)
    v = value_function(parts.value)(learned.value, seen)[0]
    weight = expectile.expectile_weight(q - v, parts.config.expectile)
    return {
        "actions": actions,
        "q_min": q,
        "v": v,
        "action": greedily(actions, q),
        "implicit_probabilities": weight / weight.sum(),
    }


DIFFUSIONS = {
    "edp": System(
        edp,
        edp_models,
        edp_draws,
        edp_act,
        parts=edp_parts,
        more=edp_more,
        renamed=EDP_SETTINGS,
        tolerance=5e-5,
    ),
    "dac": System(dac, dac_models, dac_draws, dac_act, dac_parts, more=dac_more),
    "idql": System(idql, idql_models, idql_draws, idql_act, idql_parts, more=idql_more),
}
