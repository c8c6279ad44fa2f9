"""The recorded energy of CEP: what its files hold, in the terms of our system.

Supports and times are data here: a behaviour that plays them back stands in for the
one that would be given, and each group has a noise level of its own.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdql.agents import cep
from jdql.agents.base import Given
from jdql.diffusion.schedules import Schedule
from jdql.optim import Model
from jdql.types import Transition
from tests.agents.recorded.files import Arrays, Reader, names, setting

KIND = "cep_energy"


def dense(arrays: Arrays, prefix: str) -> dict[str, jax.Array]:
    """A layer of theirs, whose kernel is (out, in)."""
    weight, bias = arrays[f"{prefix}.weight"], arrays[f"{prefix}.bias"]
    return {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}


def perceptron(arrays: Arrays, prefix: str) -> dict[str, Any]:
    """Their layers 0, 2, 4, ..., activations between them, are our Dense_0, 1, 2."""
    count = sum(name.endswith("weight") for name in names(arrays, f"{prefix}."))
    return {f"Dense_{i}": dense(arrays, f"{prefix}.{2 * i}") for i in range(count)}


def twins(arrays: Arrays, prefix: str) -> dict:
    """Theirs take [action, observation], ours [observation, action]."""
    each = [perceptron(arrays, f"{prefix}/q{i}") for i in (1, 2)]
    for layers in each:
        first = layers["Dense_0"]
        first["kernel"] = jnp.roll(first["kernel"], -setting(arrays, "act_dim"), axis=0)
    return {"params": {"q": jax.tree.map(lambda *two: jnp.stack(two), *each)}}


def energy(arrays: Arrays, prefix: str) -> dict:
    return {
        "params": {
            "frequencies": jnp.asarray(arrays[f"{prefix}/embed.0.W"]),
            "time": dense(arrays, f"{prefix}/embed.1"),
            "body": perceptron(arrays, f"{prefix}/qt"),
        }
    }


def config_of(arrays: Arrays) -> cep.Config:
    def widths(net: str) -> tuple[int, ...]:
        layers = perceptron(arrays, net)
        return tuple(layer["bias"].size for layer in layers.values())[:-1]

    rate = setting(arrays, "lr")
    return cep.Config(
        alpha=setting(arrays, "alpha"),
        q_alpha=setting(arrays, "q_alpha"),
        guidance=setting(arrays, "guidance_scale"),
        support=setting(arrays, "n_support"),
        lr=rate,
        critic_lr=rate,
        batch_size=setting(arrays, "batch"),
        discount=setting(arrays, "discount"),
        tau=setting(arrays, "tau"),
        hidden=widths("init/q0/q1"),
        energy_hidden=widths("init/qt/qt"),
        time_dim=2 * arrays["init/qt/embed.0.W"].size,
    )


def levels(arrays: Arrays, t: np.ndarray) -> Schedule:
    """The noise levels of times t, of which theirs are a continuum."""
    low, high = setting(arrays, "beta_0"), setting(arrays, "beta_1")
    log_signal = -(high - low) * np.float64(t) ** 2 / 4 - low * np.float64(t) / 2
    signal = np.exp(log_signal)
    return Schedule(np.zeros_like(signal), signal, np.sqrt(1 - signal**2))


def parts_of(arrays: Arrays, t: np.ndarray) -> cep.Parts:
    """The system of groups whose times are t; its behaviour plays draws back."""
    actor = SimpleNamespace(sample=lambda learned, observation, draws: draws)
    model = SimpleNamespace(actor=actor, schedule=levels(arrays, t))
    agent: Any = SimpleNamespace(model=model)
    parts = cep.build(config_of(arrays), {"behaviour": Given(agent, None)})
    return parts._replace(times=t)


def state_of(arrays: Arrays, when: str, parts: cep.Parts) -> cep.TrainState:
    critic, network = twins(arrays, f"{when}/q0"), energy(arrays, f"{when}/qt")
    return cep.TrainState(
        step=jnp.zeros((), jnp.int32),
        critic=Model(
            critic,
            parts.critic_optimizer.init(critic),
            twins(arrays, f"{when}/q0_target"),
        ),
        energy=Model(network, parts.optimizer.init(network), ()),
        value=Model({}, parts.critic_optimizer.init({}), ()),
    )


def times(arrays: Arrays, reader: Reader) -> np.ndarray:
    """The times of an update, uniform from their smallest to 1."""
    least = setting(arrays, "t_eps")
    return np.asarray(reader.next("uniform")) * np.float32(1 - least) + least


def draws_of(arrays: Arrays, reader: Reader, i: int) -> cep.Draws:
    return cep.Draws(
        support=jnp.asarray(arrays["batch/support"][i]),
        next_support=jnp.asarray(arrays["batch/next_support"][i]),
        k=jnp.arange(setting(arrays, "batch")),
        noise=reader.next("normal"),
    )


def batch_of(arrays: Arrays, i: int) -> Transition:
    observation, action, reward, ended, seen_next = (
        jnp.asarray(arrays[f"batch/{name}"][i])
        for name in (
            "observations",
            "actions",
            "rewards",
            "terminals",
            "next_observations",
        )
    )
    return Transition(observation, action, reward[:, 0], 1 - ended[:, 0], seen_next)
