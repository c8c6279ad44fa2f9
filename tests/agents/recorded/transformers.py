"""Diffusion Policy's transformer: names of torch -> parameters of Flax."""

from __future__ import annotations

import re

import numpy as np

from jdql.networks.transformer import ChunkTransformer
from tests.agents.recorded.files import Arrays, names, setting
from tests.agents.recorded.unets import nested

RULES = (
    (r"^pos_emb$", "positions"),
    (r"^cond_pos_emb$", "memory_positions"),
    (r"^input_emb", "enter"),
    (r"^cond_obs_emb", "observe"),
    (r"^encoder\.(\d)", lambda m: f"memory.Dense_{int(m[1]) // 2}"),
    (r"^decoder\.layers\.(\d+)", r"layer_\1"),
    (r"\.self_attn", ".attention"),
    (r"\.multihead_attn", ".memory_attention"),
    (r"\.out_proj", ".out"),
    (r"\.linear1", ".widen"),
    (r"\.linear2", ".narrow"),
    (r"\.norm(\d)", lambda m: f".norm_{int(m[1]) - 1}"),
    (r"^ln_f", "norm"),
    (r"^head", "leave"),
)
LEAVES = {"weight": "kernel", "in_proj_weight": "kernel", "in_proj_bias": "bias"}
PARTS = ("query", "key", "value")


def places(name: str) -> list[tuple[str, ...]]:
    """Where a parameter of theirs lies in ours: one place, or three of attention."""
    for pattern, to in RULES:
        name = re.sub(pattern, to, name)
    *module, leaf = name.split(".")
    ours = LEAVES.get(leaf, leaf)
    if leaf.startswith("in_proj"):
        return [(*module, part, ours) for part in PARTS]
    if module and module[-1].startswith("norm"):
        ours = ours.replace("kernel", "scale")
    return [(*module, ours)]


def layouts(name: str, value: np.ndarray, heads: int) -> list[np.ndarray]:
    """The arrays of these places: inputs before outputs, heads apart."""
    if "in_proj" in name:
        three = np.split(value, 3)
        return [part.T.reshape(*part.shape[1:], heads, -1) for part in three]
    if name.endswith("out_proj.weight"):
        return [value.T.reshape(heads, -1, len(value))]
    if name.endswith("pos_emb"):
        return [value[0]]
    return [value.T]


def params(arrays: Arrays, prefix: str = "param/") -> dict:
    """Parameters of a transformer, of all or of those that a file holds."""
    heads, leaves = setting(arrays, "n_head"), {}
    for name in names(arrays, prefix):
        made = layouts(name, arrays[prefix + name], heads)
        leaves.update(zip(places(name), made, strict=True))
    return nested(leaves)


def decayed(arrays: Arrays) -> set[tuple[str, ...]]:
    """The places of the parameters that their optimiser decays."""
    decaying = arrays["optim/decay"].tolist()
    return {place for name in decaying for place in places(name)}


def network(arrays: Arrays) -> ChunkTransformer:
    """The transformer that a file is of."""
    assert setting(arrays, "n_cond_layers") == 0, "an encoder of the observations"
    sizes = (setting(arrays, name) for name in ("n_layer", "n_head", "n_emb"))
    return ChunkTransformer(*sizes, causal=setting(arrays, "causal_attn"))
