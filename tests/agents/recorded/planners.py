"""The recorded trainers and chains of two planners, in the terms of our systems."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdql.agents import decision_diffuser, diffuser, diffuser_guided
from jdql.agents.base import Given
from jdql.optim import Model
from tests.agents.recorded import unets
from tests.agents.recorded.files import Arrays, Reader, data_spec, names, setting

KINDS = (
    "diffuser_loss",
    "diffuser_value_loss",
    "diffuser_sample",
    "diffuser_guided",
    "dd_loss",
    "dd_sample",
)
# Read by the tests of networks and of data.
ELSEWHERE = (
    "diffuser_unet",
    "diffuser_value",
    "diffuser_normalizers",
    "diffuser_dataset",
    "dd_unet",
    "dd_dataset",
)


def spec_of(arrays: Arrays) -> Any:
    named = {"config/obs_dim": "observation_dim", "config/act_dim": "action_dim"}
    return data_spec({n: arrays[f"config/{theirs}"] for n, theirs in named.items()})


def planner_config(arrays: Arrays) -> diffuser.Config:
    """Their settings; a goal is what their condition holds at the end."""
    given = {
        ours: setting(arrays, theirs)
        for ours, theirs in {
            "action_weight": "action_weight",
            "loss_discount": "loss_discount",
            "lr": "lr",
            "ema_decay": "ema_decay",
            "ema_every": "update_ema_every",
            "ema_start": "step_start_ema",
            "clip": "clip_denoised",
        }.items()
        if f"config/{theirs}" in arrays
    }
    epsilon = setting(arrays, "predict_epsilon")
    return diffuser.Config(
        horizon=setting(arrays, "horizon"),
        diffusion_steps=setting(arrays, "n_timesteps"),
        dim=setting(arrays, "dim"),
        dim_mults=setting(arrays, "dim_mults"),
        kernel=setting(arrays, "kernel_size"),
        predict="epsilon" if epsilon else "x0",
        **given,
    )


def planner_parts(arrays: Arrays) -> diffuser.Parts:
    """The system of a file, whose goals are whole states."""
    parts = diffuser.build(planner_config(arrays), spec_of(arrays))
    if len(np.atleast_1d(arrays["config/condition_times"])) == 1:
        return parts
    # Any columns will do: what is held is given, not read off an observation.
    held = _with(parts.config, goal=(0,))
    return parts._replace(config=held)


def _with(config: Any, **changes: Any) -> Any:
    for name, value in changes.items():
        object.__setattr__(config, name, value)
    return config


def model(optimizer: Any, params: Any) -> Model:
    return Model(params, optimizer.init(params), params)


def batches(arrays: Arrays, update: int) -> slice:
    """The mini-batches that an update accumulates."""
    each = setting(arrays, "gradient_accumulate_every")
    return slice(update * each, (update + 1) * each)


def draws_of(arrays: Arrays, reader: Reader) -> tuple[jax.Array, jax.Array]:
    """Steps and noise of one update: those of its mini-batches, one behind another."""
    pairs = [
        (reader.steps(), reader.next("normal"))
        for _ in range(setting(arrays, "gradient_accumulate_every"))
    ]
    return tuple(jnp.concatenate(column) for column in zip(*pairs, strict=True))


def joined(values: np.ndarray) -> jax.Array:
    """[mini-batches, B, ...] as one batch."""
    return jnp.asarray(values.reshape(-1, *values.shape[2:]))


def value_parts(arrays: Arrays, planner: diffuser.Parts | None = None):
    """The value of a file, on a planner that only lends its layout and schedule."""
    prefix = "" if planner is None else "value_"
    widths = setting(arrays, f"{prefix}dim_mults")
    config = diffuser_guided.Config(
        lr=setting(arrays, "lr") if "config/lr" in arrays else 2e-4,
        ema_every=1,
        ema_start=1,
        dim=setting(arrays, f"{prefix}dim"),
        dim_mults=widths,
        kernel=setting(arrays, "kernel_size"),
    )
    if planner is None:
        own = diffuser.Config(
            horizon=setting(arrays, "horizon"),
            diffusion_steps=setting(arrays, "n_timesteps"),
            dim_mults=(1,),
        )
        planner = diffuser.build(own, spec_of(arrays))
    else:
        config = _with(
            config,
            scale=setting(arrays, "scale"),
            stop=setting(arrays, "t_stopgrad"),
            guide_steps=setting(arrays, "n_guide_steps"),
        )
    shown = SimpleNamespace(
        layout=planner.layout, schedule=planner.schedule, config=planner.config
    )
    agent: Any = SimpleNamespace(model=shown)
    return diffuser_guided.build(config, {"planner": Given(agent, None)})


# Decision Diffuser. -------------------------------------------------------------------


def decision_parts(arrays: Arrays) -> decision_diffuser.Parts:
    """The system of a file, whose loss and chain are as in the authors' code."""
    assert setting(arrays, "returns_condition")
    given = {
        ours: setting(arrays, theirs)
        for ours, theirs in {
            "lr": "lr",
            "ema_decay": "ema_decay",
            "ema_every": "update_ema_every",
            "ema_start": "step_start_ema",
            "loss_discount": "loss_discount",
        }.items()
        if f"config/{theirs}" in arrays
    }
    config = decision_diffuser.Config(
        horizon=setting(arrays, "horizon"),
        diffusion_steps=setting(arrays, "n_timesteps"),
        dim=setting(arrays, "dim"),
        dim_mults=setting(arrays, "dim_mults"),
        kernel=setting(arrays, "kernel_size"),
        hidden=(setting(arrays, "hidden_dim"),) * 2,
        guidance=setting(arrays, "condition_guidance_w"),
        dropout=setting(arrays, "condition_dropout"),
        predict="epsilon" if setting(arrays, "predict_epsilon") else "x0",
        clip=setting(arrays, "clip_denoised"),
        **given,
    )
    return decision_diffuser.build(config, spec_of(arrays))


def inverse_params(arrays: Arrays, prefix: str) -> dict:
    """Parameters of the inverse dynamics, or those of them that a file holds."""
    leaves = {}
    for name in names(arrays, prefix):
        index, leaf = name.split(".")
        value = arrays[prefix + name]
        place = f"Dense_{int(index) // 2}", "kernel" if leaf == "weight" else "bias"
        leaves[place] = value.T if leaf == "weight" else value
    return unets.nested(leaves)


def decision_draws(arrays: Arrays, reader: Reader) -> decision_diffuser.Draws:
    """Steps, noise and coins of one update, whose mini-batches are joined."""
    triples = [
        (reader.steps(), reader.next("normal"), reader.next("keep")[:, 0])
        for _ in range(setting(arrays, "gradient_accumulate_every"))
    ]
    # A kept return is one whose coin, 1 or 0, is not below the share of dropped ones.
    return decision_diffuser.Draws(
        *(jnp.concatenate(column) for column in zip(*triples, strict=True))
    )
