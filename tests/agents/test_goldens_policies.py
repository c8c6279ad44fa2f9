"""Diffusion Policy against its authors' own code: same parameters, batches, noise."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jdql.agents import diffusion_policy as policy
from tests.agents.programs import once
from tests.agents.recorded import compare, files, policies
from tests.agents.recorded.files import Reader, setting

FILES = files.files("goldens_systems", "JDQL_GOLDENS_SYSTEMS")


def of(*kinds: str):
    """A parameter for every file of these kinds."""
    return files.parameters([file for file in FILES if files.kind(file) in kinds])


@pytest.mark.parametrize("file", of("dp_loss", "dp_transformer_loss"))
def test_updates_agree_with_the_authors(file):
    arrays = files.load(file)
    parts = policies.build(arrays)
    state, reader = policies.state(arrays, parts), Reader(arrays)
    update = once(functools.partial(policy.update_step, parts))
    updates = setting(arrays, "steps")
    for i in range(updates):
        if "metric/ema_decay" in arrays:
            decay = 1 - parts.averaging.rate(state.step)
            compare.assert_close(decay, arrays["metric/ema_decay"][i], 1e-6, "decay")
        batch, draws = policies.batch(arrays, i), policies.draws(reader)
        state, metrics = update(state, batch, draws)
        for ours, theirs in (("actor_loss", "loss"), ("actor_grad_norm", "grad_norm")):
            name = f"{theirs}, update {i}"
            expected = arrays[f"metric/{theirs}"][i]
            compare.assert_close(metrics[ours], expected, 2e-5, name)
    reader.finish()
    for name, mine, prefix in (
        ("params", state.actor.params, "final/"),
        ("average", state.actor.average, "final_ema/"),
    ):
        theirs = policies.leaves(policies.params(arrays, prefix))
        assert theirs or prefix == "final_ema/"
        if theirs:
            known = {path: policies.leaves(mine)[path] for path in theirs}
            pairs = {name: (known, theirs, parts.config.lr)}
            compare.assert_same_parameters(pairs, updates)


@pytest.mark.parametrize("file", of("dp_sample"))
def test_plans_agree_with_the_authors(file):
    """Whole sequences, and the actions of them that are carried out."""
    arrays = files.load(file)
    parts = policies.build(arrays)
    C, A = parts.config.observed, parts.spec.action_dim
    seen = jnp.asarray(policies.scaled(arrays, "obs", arrays["in/obs"][:, :C]))
    plan = once(functools.partial(policy.plan, parts))
    made = plan(policies.params(arrays, "param/"), seen, policies.chain(arrays, parts))
    actions = policies.unscaled(arrays, "action", np.asarray(made[..., :A]))
    sides = [arrays[f"normalizer/action/{side}"] for side in ("min", "max")]
    reach = sides[1] - sides[0]
    error = (actions - arrays["out/action_pred"]) / reach
    assert np.abs(error).max() < 5e-4
    # They can also leave out the action for now, which nothing here does.
    now = C - 1 if setting(arrays, "oa_step_convention") else C
    carried_out = actions[:, now : now + parts.config.executed]
    assert np.abs((carried_out - arrays["out/action"]) / reach).max() < 5e-4
    if parts.config.observations == "inpaint":
        observations = policies.unscaled(arrays, "obs", np.asarray(made[..., A:]))
        np.testing.assert_allclose(observations, arrays["out/obs_pred"], atol=5e-3)


def test_every_file_of_diffusion_policy_is_read_somewhere():
    kinds = {files.kind(file) for file in FILES}
    theirs = {kind for kind in kinds if kind.startswith("dp_")}
    assert theirs <= {*policies.KINDS, *policies.ELSEWHERE}
