"""Recorded systems whose actor is a flow: FQL, BFN, IFQL and CFGRL."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jdql.agents import bfn, cfgrl, critics, fql, ifql
from jdql.diffusion import flow, guidance
from jdql.networks.mlp import VelocityNetwork
from jdql.types import Chunk
from tests.agents.recorded.files import Arrays, Reader, setting
from tests.agents.recorded.system import (
    Models,
    System,
    body,
    ensemble,
    greedily,
    mlp,
    observations,
    transitions,
    with_target,
)

# FQL, BFN and IFQL. -------------------------------------------------------------------


def chunks(arrays: Arrays, i: int) -> Chunk:
    """Chunks; where they are single actions the axis of the steps may be missing."""
    rows, B = transitions(arrays, i), setting(arrays, "batch")
    valid = jnp.ones(rows.reward.shape)
    if "batch/valid" in arrays:
        valid = jnp.asarray(arrays["batch/valid"][i])
    return Chunk(
        rows.observation,
        rows.action.reshape(B, setting(arrays, "chunk"), -1),
        rows.reward.reshape(B, -1),
        valid.reshape(B, -1),
        rows.mask,
        rows.next_observation,
    )


def fql_models(arrays: Arrays, when: str) -> Models:
    names = (f"{when}/flow", f"{when}/student")
    policies = fql.Policies(*(body(arrays, name) for name in names))
    critic = with_target(ensemble, arrays, f"{when}/critic")
    return {"actor": (policies, ()), "critic": critic}


def fql_draws(reader: Reader, arrays: Arrays, config: fql.Config) -> fql.Draws:
    next_noise, noise = reader.next("normal"), reader.next("normal")
    return fql.Draws(next_noise, reader.next("uniform"), noise, reader.next("normal"))


def fql_act(parts: fql.Parts, learned: Any, arrays: Arrays, draws: Reader):
    noise = jnp.atleast_2d(draws.next("normal"))
    return {"action": fql.act_at_once(parts, learned, observations(arrays, 1), noise)}


def bfn_models(arrays: Arrays, when: str) -> Models:
    critic = with_target(ensemble, arrays, f"{when}/critic")
    return {"actor": (body(arrays, f"{when}/flow"), ()), "critic": critic}


def bfn_draws(reader: Reader, arrays: Arrays, config: bfn.Config) -> bfn.Draws:
    next_noise, noise = reader.next("normal"), reader.next("normal")
    return bfn.Draws(next_noise, reader.next("uniform"), noise)


def bfn_act(parts: bfn.Parts, learned: Any, arrays: Arrays, draws: Reader):
    noise = draws.next("normal")
    seen = observations(arrays, len(noise))
    actions = parts.actor.sample(learned.actor, seen, noise)
    q = parts.value(learned.critic, seen, actions)
    return {"actions": actions, "q": q, "action": greedily(actions, q)}


def ifql_models(arrays: Arrays, when: str) -> Models:
    return {**bfn_models(arrays, when), "value": (mlp(arrays, f"{when}/value"), ())}


def ifql_draws(reader: Reader, arrays: Arrays, config: ifql.Config) -> ifql.Draws:
    noise = reader.next("normal")
    return ifql.Draws(reader.next("uniform"), noise)


def ifql_act(parts: ifql.Parts, learned: Any, arrays: Arrays, draws: Reader):
    noise = draws.next("normal")
    seen = observations(arrays, len(noise))
    actions = parts.actor.sample(learned.actor, seen, noise)
    q = critics.smaller_q(parts.critic)(learned.critic, seen, actions)
    return {"actions": actions, "q_min": q, "action": greedily(actions, q)}


# CFGRL. -------------------------------------------------------------------------------


def cfgrl_models(arrays: Arrays, when: str) -> Models:
    """Their actor is a flow and ours a diffusion: it is left out."""
    critic = with_target(ensemble, arrays, f"{when}/critic")
    return {"critic": critic, "value": (mlp(arrays, f"{when}/value"), ())}


def cfgrl_draws(reader: Reader, arrays: Arrays, config: cfgrl.Config) -> cfgrl.Draws:
    noise, _ = reader.next("normal"), reader.next("uniform")
    coin = jnp.where(reader.next("dropped") == 1, -1.0, 2.0)
    return cfgrl.Draws(jnp.zeros(config.batch_size, jnp.int32), noise, coin)


def cfgrl_more(parts: cfgrl.Parts, old: Any, new: Any, batch: Any, draws: Any):
    gain = cfgrl.advantage(parts, old, batch)
    dropped = draws.coin < parts.config.dropout
    return {"label": cfgrl.labels(gain, parts.config.threshold, dropped)}


def cfgrl_act(parts: cfgrl.Parts, learned: Any, arrays: Arrays, draws: Reader):
    """Their flow, with our guidance between the labels dropped and good."""
    del learned
    network = VelocityNetwork(setting(arrays, "act_dim"), parts.config.hidden)
    params, label = body(arrays, "final/flow"), arrays["final/label/embedding"]
    shown = (cfgrl.DROPPED, cfgrl.GOOD)
    inputs = [jnp.append(arrays["act/observation"][0], label[i]) for i in shown]

    def velocity(x, t):
        estimates = (network.apply(params, x, t, seen) for seen in inputs)
        return guidance.mixture(*estimates, parts.config.guidance)

    noise = draws.next("normal").ravel()
    x = flow.euler(velocity, noise, setting(arrays, "flow_steps"))
    return {"action": jnp.clip(x, -1, 1)}


FLOWS = {
    "fql": System(fql, fql_models, fql_draws, fql_act, batch=chunks),
    "bfn": System(bfn, bfn_models, bfn_draws, bfn_act, batch=chunks),
    "ifql": System(ifql, ifql_models, ifql_draws, ifql_act),
    "cfgrl": System(
        cfgrl,
        cfgrl_models,
        cfgrl_draws,
        cfgrl_act,
        more=cfgrl_more,
        left_out=("bc_loss",),
    ),
}
