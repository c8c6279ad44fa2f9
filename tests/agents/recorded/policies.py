"""Diffusion Policy as its authors' files hold it: settings, parameters, batches."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdql.agents import diffusion_policy as policy
from jdql.diffusion.reverse import ChainDraws
from jdql.optim import Model
from jdql.types import DataSpec, Window
from tests.agents.recorded import transformers, unets
from tests.agents.recorded.files import Arrays, Reader, names, setting

KINDS = ("dp_loss", "dp_transformer_loss", "dp_sample")
# Kinds of theirs that the tests of what they are about read.
ELSEWHERE = {
    "dp_normalizer": "tests/data",
    "dp_schedule": "tests/test_optim.py and tests/diffusion",
    "dp_transformer": "tests/networks",
    "dp_unet": "tests/networks",
    "dp_windows": "tests/data",
}

# Their names -> ours.
RENAMED = {
    "n_obs_steps": "observed",
    "n_action_steps": "executed",
    "num_train_timesteps": "diffusion_steps",
    "batch": "batch_size",
    "down_dims": "widths",
    "kernel_size": "kernel",
    "n_groups": "groups",
    "diffusion_step_embed_dim": "step_dim",
    "n_layer": "layers",
    "n_head": "heads",
    "n_emb": "width",
    "ema_max_value": "ema_largest",
}


def given(arrays: Arrays, name: str, otherwise: Any) -> Any:
    return setting(arrays, name) if f"config/{name}" in arrays else otherwise


def config(arrays: Arrays) -> policy.Config:
    """The settings of a file; its rate stays, and nothing is dropped out."""
    theirs = {RENAMED.get(n, n): setting(arrays, n) for n in names(arrays, "config/")}
    fields = policy.Config.__dataclass_fields__
    ours = {name: value for name, value in theirs.items() if name in fields}
    known = {
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "epsilon",
        "clip_sample": True,
        "eps": 1e-8,
        "ema_inv_gamma": 1.0,
        "ema_update_after_step": 0,
        "causal_attn": True,
    }
    for name, value in known.items():
        assert given(arrays, name, value) == value, name
    transformer = "config/n_layer" in arrays
    inpaints = given(arrays, "conditioning", "global") == "inpaint"
    shifts = not given(arrays, "cond_predict_scale", True)
    return policy.Config(
        **ours,
        warmup=0,
        network="transformer" if transformer else "unet",
        dropout=0.0,
        observations="inpaint" if inpaints else "condition",
        modulation="shift" if shifts else "film",
        sampler="ddim" if given(arrays, "scheduler", "ddpm") == "ddim" else "ancestral",
        sample_steps=given(arrays, "num_inference_steps", None),
    )


def build(arrays: Arrays) -> policy.Parts:
    A = setting(arrays, "action_dim")
    bounds = (-1.0,) * A, (1.0,) * A
    return policy.build(
        config(arrays), DataSpec(setting(arrays, "obs_dim"), A, *bounds)
    )


def params(arrays: Arrays, prefix: str) -> dict:
    """Parameters of the network, or of those that a file holds of them."""
    reads = transformers if "config/n_layer" in arrays else unets
    return reads.params(arrays, prefix)


def state(arrays: Arrays, parts: policy.Parts) -> policy.TrainState:
    """The state before the first update, whose number the average counts from."""
    loaded = params(arrays, "init/")
    shapes = jax.eval_shape(lambda: policy.init(parts, jax.random.key(0)))
    assert jax.tree.structure(shapes.actor.params) == jax.tree.structure(loaded)
    step = jnp.int32(given(arrays, "ema_first_step", 0))
    model = Model(loaded, parts.optimizer.init(loaded), loaded)
    return policy.TrainState(step, model)


def scaled(arrays: Arrays, what: str, x: np.ndarray) -> np.ndarray:
    side = f"normalizer/{what}"
    return x * arrays[f"{side}/scale"] + arrays[f"{side}/offset"]


def unscaled(arrays: Arrays, what: str, x: np.ndarray) -> np.ndarray:
    side = f"normalizer/{what}"
    return (x - arrays[f"{side}/offset"]) / arrays[f"{side}/scale"]


def batch(arrays: Arrays, i: int) -> Window:
    """The windows of an update, on the scale of agents."""
    observation, action = (
        jnp.asarray(scaled(arrays, what, arrays[f"batch/{what}"][i]))
        for what in ("obs", "action")
    )
    ones = jnp.ones(action.shape[:2])
    return Window(observation, action, 0 * ones, ones, ones, observation[:, -1])


def draws(reader: Reader) -> policy.Draws:
    """They draw noise first, then the steps."""
    noise = reader.next("normal")
    return policy.Draws(reader.steps(), noise)


def chain(arrays: Arrays, parts: policy.Parts) -> ChainDraws:
    """The noise of a chain; theirs lacks the last draw, which is multiplied by 0."""
    drawn = [arrays[f"draw/{name}"] for name in names(arrays, "draw/")]
    missing = 1 + parts.sampler.draws - len(drawn)
    drawn += [np.zeros_like(drawn[0])] * missing
    noises = np.asarray(drawn[1:]).reshape(-1, *drawn[0].shape)
    return ChainDraws(jnp.asarray(drawn[0]), jnp.asarray(noises))


def leaves(tree: dict) -> dict[str, Any]:
    """Arrays by their paths, so that a part of them can be compared."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in found}
