"""Forward passes of the authors' own sequence networks, from their parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.networks.transformer import causal_masks, decays
from tests.agents.recorded import transformers, unets
from tests.agents.recorded.compare import assert_close
from tests.agents.recorded.files import Arrays, files, kind, load, parameters

FILES = files("goldens_systems", "JDQL_GOLDENS_SYSTEMS")
KINDS = {file: kind(file) for file in FILES}


def of(*kinds: str):
    """A parameter for every file of these kinds."""
    return parameters([file for file in FILES if KINDS[file] in kinds])


def inputs(arrays: Arrays, *names: str) -> list[jax.Array | None]:
    """What a network is called with; None where the file has none."""
    found = (arrays.get(f"in/{name}") for name in names)
    return [None if value is None else jnp.asarray(value) for value in found]


def tolerance(arrays: Arrays) -> float:
    """Their own attention, computed anew in float32, differs by 3e-5."""
    attention = any("mid_attn" in name for name in arrays)
    return 1e-4 if attention else 1e-5


def check_shapes(network, params, *call) -> None:
    """Each parameter is there, none is left over, and all are of the right size."""
    made = jax.eval_shape(network.init, jax.random.key(0), *call)
    assert jax.tree.structure(made) == jax.tree.structure(params)
    sizes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert jax.tree.map(lambda leaf: leaf.shape, made) == sizes


@pytest.mark.parametrize("file", of("dp_unet"))
def test_unet_of_diffusion_policy(file):
    arrays = load(file)
    network, params = unets.network(arrays), unets.params(arrays)
    x, k, condition, local = inputs(
        arrays, "sample", "timestep", "global_cond", "local_cond"
    )
    check_shapes(network, params, x, k, condition, None, local)
    found = jax.jit(network.apply)(params, x, k, condition, None, local)
    assert_close(found, arrays["out/sample"], tolerance(arrays), "out/sample")


@pytest.mark.parametrize("file", of("diffuser_unet"))
def test_unet_of_diffuser(file):
    arrays = load(file)
    network, params = unets.network(arrays), unets.params(arrays)
    x, k = inputs(arrays, "x", "timestep")
    check_shapes(network, params, x, k)
    found = jax.jit(network.apply)(params, x, k)
    assert_close(found, arrays["out/x"], tolerance(arrays), "out/x")


@pytest.mark.parametrize("file", of("dd_unet"))
def test_unet_of_decision_diffuser(file):
    arrays = load(file)
    network, params = unets.network(arrays), unets.params(arrays)
    x, k, returns = inputs(arrays, "x", "timestep", "returns")
    keep = jnp.asarray(arrays["draw/0000/keep"])[:, 0]
    check_shapes(network, params, x, k, returns)
    apply = jax.jit(network.apply)
    calls = {"given": (returns,), "dropped": (None,), "train": (returns, keep)}
    for name, call in calls.items():
        found = apply(params, x, k, *call)
        assert_close(found, arrays[f"out/{name}"], tolerance(arrays), name)
    nothing = apply(params, x, k, returns, jnp.zeros_like(keep))
    assert_close(nothing, arrays["out/dropped"], tolerance(arrays), "dropped by keep")


@pytest.mark.parametrize("file", of("diffuser_value"))
def test_value_network_of_diffuser(file):
    arrays = load(file)
    network, params = unets.value(arrays), unets.params(arrays)
    x, k = inputs(arrays, "x", "timestep")
    check_shapes(network, params, x, k)

    @jax.jit
    def both(x):
        value, back = jax.vjp(lambda x: network.apply(params, x, k), x)
        return value, back(jnp.ones_like(value))[0]

    value, gradient = both(x)
    assert_close(value, arrays["out/value"][:, 0], 1e-5, "value")
    assert_close(gradient, arrays["out/gradient"], 1e-5, "gradient")


@pytest.mark.parametrize("file", of("dp_transformer"))
def test_transformer_of_diffusion_policy(file):
    arrays = load(file)
    network, params = transformers.network(arrays), transformers.params(arrays)
    x, k, condition = inputs(arrays, "sample", "timestep", "cond")
    check_shapes(network, params, x, k, condition)
    found = jax.jit(network.apply)(params, x, k, condition)
    assert_close(found, arrays["out/sample"], 1e-5, "out/sample")


@pytest.mark.parametrize("file", of("dp_transformer"))
def test_masks_of_diffusion_policy(file):
    arrays = load(file)
    if "mask" in arrays:
        actions, memory = causal_masks(*arrays["memory_mask"].shape)
        np.testing.assert_array_equal(actions, arrays["mask"])
        np.testing.assert_array_equal(memory, arrays["memory_mask"])


@pytest.mark.parametrize("file", of("dp_transformer", "dp_transformer_loss"))
def test_parameters_that_decay_in_diffusion_policy(file):
    arrays = load(file)
    prefix = "init/" if any(name.startswith("init/") for name in arrays) else "param/"
    chosen = decays(transformers.params(arrays, prefix))["params"]
    flat = jax.tree_util.tree_leaves_with_path(chosen)
    found = {tuple(part.key for part in path) for path, decaying in flat if decaying}
    assert found == transformers.decayed(arrays)
