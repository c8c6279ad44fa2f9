"""The temporal U-Nets of three repositories: names of torch -> parameters of Flax.

A name becomes a path by rewriting its parts, and an array's place in the layer says
how it is laid out, so that also a part of the parameters can be read.
"""

from __future__ import annotations

import re

import jax.numpy as jnp
import numpy as np

from jdql.networks.mlp import MLP
from jdql.networks.temporal_layers import Film, LinearAttention, Shift
from jdql.networks.temporal_unet import TemporalUnet
from jdql.networks.temporal_value import TemporalValue
from tests.agents.recorded.files import Arrays, names, setting

# The block that their code makes for a way in which the condition never comes.
UNUSED = "local_cond_encoder.1."

MODULES = (
    (r"^(time_mlp|diffusion_step_encoder)\.(\d)", r"step.\2"),
    (r"^returns_mlp\.(\d)", r"embed.\1"),
    (r"^local_cond_encoder\.0", "local"),
    (r"^mid_modules\.(\d)", r"middle_\1"),
    (r"^mid_block(\d)", lambda m: f"middle_{int(m[1]) - 1}"),
    (r"^mid_attn", "middle_attention"),
    (r"^mid_down(\d)\.conv", lambda m: f"middle_halve_{int(m[1]) - 1}"),
    (r"^final_block\.(\d)", r"head.\1"),
    (r"^final_conv\.0", "final"),
    (r"^final_conv\.1", "out"),
    (r"^(?:blocks|downs|down_modules)\.(\d+)\.[23]\.conv", r"halve_\1"),
    (r"^(?:blocks|downs|down_modules)\.(\d+)", r"down_\1"),
)
PARTS = (
    (r"^(step|embed|head)\.(\d)", lambda m: f"{m[1]}.Dense_{int(m[2]) // 2}"),
    (r"^((?:down|up)_\d+)\.0", r"\1.first"),
    (r"^((?:down|up)_\d+)\.1", r"\1.second"),
    (r"^((?:down|up)_\d+)\.2", r"\1.attention"),
    (r"\.blocks\.(\d)", r".block_\1"),
    (r"\.block\.0", ".conv"),
    (r"\.block\.[12]", ".norm"),
    (r"\.(time_mlp|cond_encoder)\.1", ".modulation.dense"),
    (r"\.residual_conv", ".skip"),
    (r"attention\.fn\.fn\.to_qkv", "attention.qkv"),
    (r"attention\.fn\.fn\.to_out", "attention.out"),
    (r"attention\.fn\.norm", "attention.norm"),
)


def _rewritten(name: str, rules) -> str:
    for pattern, to in rules:
        name = re.sub(pattern, to, name)
    return name


def path(name: str, levels: int) -> tuple[str, ...]:
    """Where a parameter of theirs lies in ours, which count the way up from below."""

    def upwards(m):
        return f"up_{levels - 1 - int(m[1])}"

    def doubling(m):
        return f"double_{levels - 1 - int(m[1])}"

    ups = (
        (r"^(?:ups|up_modules)\.(\d+)\.[23]\.conv", doubling),
        (r"^(?:ups|up_modules)\.(\d+)", upwards),
    )
    *module, leaf = _rewritten(_rewritten(name, MODULES + ups), PARTS).split(".")
    norm = module[-1] == "norm"
    leaves = {"weight": "scale" if norm else "kernel", "g": "scale", "b": "bias"}
    return (*module, leaves.get(leaf, leaf))


def layout(place: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """An array of theirs as ours: taps first, inputs before outputs."""
    if place[-1] != "kernel":
        return value.reshape(-1)
    if place[0].startswith("double"):
        return value.transpose(2, 0, 1)[::-1]
    if value.ndim == 2 or (value.shape[-1] == 1 and place[-2] in LINEAR):
        return value.reshape(value.shape[:2]).T
    return value.transpose(2, 1, 0)


LINEAR = ("skip", "out", "qkv")  # their convolutions of one tap


def nested(leaves: dict[tuple[str, ...], np.ndarray]) -> dict:
    """Arrays by their paths as parameters of Flax."""
    root: dict = {}
    for place, value in leaves.items():
        node = root
        for part in place[:-1]:
            node = node.setdefault(part, {})
        node[place[-1]] = jnp.asarray(value)
    return {"params": root}


def own(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    """What lies behind the prefix, but for the module that is never used."""
    found = {name: arrays[prefix + name] for name in names(arrays, prefix)}
    return {n: v for n, v in found.items() if not n.startswith(UNUSED)}


def params(arrays: Arrays, prefix: str = "param/") -> dict:
    """Parameters of a U-Net or a value network: all, or those that a file holds.

    Args:
      arrays: a file.
      prefix: before the names of the network, such as "final/model.".
    """
    theirs = own(arrays, prefix)
    count = levels(arrays)
    places = {name: path(name, count) for name in theirs}
    return nested({place: layout(place, theirs[n]) for n, place in places.items()})


# The network of a file. ---------------------------------------------------------------


def widths(arrays: Arrays) -> tuple[int, ...]:
    for name in ("down_dims", "dims"):
        if f"config/{name}" in arrays:
            return setting(arrays, name)
    return tuple(setting(arrays, "dim") * m for m in setting(arrays, "dim_mults"))


def levels(arrays: Arrays) -> int:
    return len(widths(arrays))


def network(arrays: Arrays, prefix: str = "param/") -> TemporalUnet:
    """The U-Net that a file is of."""
    policy = "config/down_dims" in arrays
    dim = setting(arrays, "diffusion_step_embed_dim" if policy else "dim")
    film = policy and setting(arrays, "cond_predict_scale")
    attention = any("mid_attn" in name for name in names(arrays, prefix))
    returns = any(name.startswith("returns_mlp") for name in names(arrays, prefix))
    return TemporalUnet(
        widths(arrays),
        dim,
        setting(arrays, "kernel_size"),
        setting(arrays, "n_groups"),
        Film if film else Shift,
        LinearAttention if attention else None,
        MLP((dim, 4 * dim), dim) if returns else None,
    )


def value(arrays: Arrays) -> TemporalValue:
    """The value network that a file is of."""
    dim = "dim" if "config/dim" in arrays else "embed_dim"
    kernel, groups = (
        setting(arrays, name) if f"config/{name}" in arrays else default
        for name, default in (("kernel_size", 5), ("n_groups", 8))
    )
    return TemporalValue(widths(arrays), setting(arrays, dim), kernel, groups)
