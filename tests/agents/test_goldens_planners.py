"""Two planners' authors' numbers: trainers and chains, every draw of theirs put in."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.agents import decision_diffuser, diffuser, diffuser_guided, trajectories
from jdql.diffusion.reverse import ChainDraws
from tests.agents.programs import once
from tests.agents.recorded import files, planners, unets
from tests.agents.recorded.compare import assert_close
from tests.agents.recorded.files import Arrays, Reader, setting

FILES = files.files("goldens_systems", "JDQL_GOLDENS_SYSTEMS")


def of(kind: str):
    return pytest.mark.parametrize(
        "file", files.parameters([f for f in FILES if files.kind(f) == kind])
    )


def leaves(tree: Any) -> dict[str, np.ndarray]:
    flat, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def assert_same_parameters(actual: Any, expected: Any, rate: float, updates: int):
    """Those that a file holds: all but two in a thousand, and none far off."""
    mine, theirs = leaves(actual), leaves(expected)
    assert theirs
    assert set(theirs) <= set(mine)
    error = np.concatenate([np.abs(mine[n] - v).ravel() for n, v in theirs.items()])
    assert np.mean(error > max(2e-6, 0.01 * rate)) <= 2e-3
    assert error.max() <= rate * updates


def assert_same_training(arrays: Arrays, update: Any, state: Any, name: str, rows: Any):
    """Losses, gradient norms, parameters and averages over the updates of a file."""
    reader, updates = Reader(arrays), setting(arrays, "steps")
    for i in range(updates):
        draws = planners.draws_of(arrays, reader)
        batch = rows(planners.batches(arrays, i))
        state, metrics = update(state, batch, draws)
        loss = arrays["metric/loss"][planners.batches(arrays, i)].mean()
        assert_close(metrics["loss"], loss, 2e-5, f"loss, update {i}")
        norm = arrays["metric/grad_norm"][i]
        assert_close(metrics["norm"], norm, 2e-5, f"norm, update {i}")
    reader.finish()
    found, rate = getattr(state, name), setting(arrays, "lr")
    for prefix, params in (("final/", found.params), ("final_ema/", found.average)):
        assert_same_parameters(params, unets.params(arrays, prefix), rate, updates)


@of("diffuser_loss")
def test_the_planner_trains_as_the_authors_does(file):
    arrays = files.load(file)
    parts = planners.planner_parts(arrays)
    weights = trajectories.loss_weights(
        parts.layout, parts.config.action_weight, parts.config.loss_discount
    )
    assert_close(weights[0], arrays["loss_weights"], 1e-6, "weights")

    @once
    def update(state, batch, draws):
        state, metrics = diffuser.update_step(
            parts, state, batch, diffuser.Draws(*draws)
        )
        loss = metrics["planner_loss"]
        if parts.config.predict == "epsilon":
            # Their output there is overwritten by what is held, the target is not.
            mask = diffuser.held(parts, jnp.ones_like(batch))(jnp.zeros_like(batch))
            loss += jnp.mean(weights * mask * (batch - draws[1]) ** 2)
        return state, {"loss": loss, "norm": metrics["planner_grad_norm"]}

    model = planners.model(parts.optimizer, unets.params(arrays, "init/"))
    state = diffuser.TrainState(jnp.zeros((), jnp.int32), model)

    def rows(chosen):
        return planners.joined(arrays["batch/trajectories"][chosen])

    assert_same_training(arrays, update, state, "planner", rows)


@of("diffuser_value_loss")
def test_the_value_trains_as_the_authors_does(file):
    arrays = files.load(file)
    parts = planners.value_parts(arrays)

    @once
    def update(state, batch, draws):
        state, metrics = diffuser_guided.update_step(
            parts, state, batch, diffuser_guided.Draws(*draws)
        )
        loss, norm = metrics["value_loss"], metrics["value_grad_norm"]
        return state, {"loss": loss, "norm": norm}

    model = planners.model(parts.optimizer, unets.params(arrays, "init/"))
    state = diffuser_guided.TrainState(jnp.zeros((), jnp.int32), model)

    def rows(chosen):
        plan = planners.joined(arrays["batch/trajectories"][chosen])
        value = planners.joined(arrays["batch/values"][chosen])[:, 0]
        return diffuser_guided.Batch(plan, value)

    assert_same_training(arrays, update, state, "critic", rows)


def chain_of(arrays: Arrays, parts: diffuser.Parts, guide: Any = None) -> jax.Array:
    """The plans of a file's draws, conditions and parameters, from noise on."""
    reader, K = Reader(arrays), parts.schedule.steps
    drawn = [reader.next("normal") for _ in range(K + 1)]
    reader.finish()
    values = np.zeros(drawn[0].shape, np.float32)
    for name in files.names(arrays, "in/condition/"):
        values[:, int(name), parts.layout.actions :] = arrays[f"in/condition/{name}"]
    clamp = diffuser.held(parts, jnp.asarray(values))
    predict = functools.partial(parts.network.apply, unets.params(arrays))
    draws = ChainDraws(drawn[0], jnp.stack(drawn[1:]))
    np.testing.assert_array_equal(clamp(drawn[0]), arrays["chain"][0])
    sample = parts.sampler.sample
    return once(lambda d: sample(predict, d, guide, clamp, whole=True))(draws)


@of("diffuser_sample")
def test_plans_are_the_authors(file):
    arrays = files.load(file)
    found = chain_of(arrays, planners.planner_parts(arrays))[-1]
    assert_close(found, arrays["out/trajectories"], 5e-4, "plans")
    assert_close(found, arrays["chain"][-1], 5e-4, "the end of the chain")


@of("diffuser_guided")
def test_guided_plans_are_the_authors(file):
    """They are sorted by their values before the last denoising step."""
    arrays = files.load(file)
    parts = planners.planner_parts(arrays)
    stage = planners.value_parts(arrays, parts)
    value = unets.params(arrays, "value_param/")
    before, found = chain_of(arrays, parts, diffuser_guided.guide(stage, value))[-2:]
    assert_close(found, arrays["chain"][-1], 5e-4, "plans")
    worth = stage.network.apply(value, before, jnp.int32(0))
    order = np.argsort(-np.asarray(worth))
    np.testing.assert_array_equal(order, arrays["out/order"])
    assert_close(found[order], arrays["out/trajectories"], 5e-4, "sorted plans")
    of_plans = stage.network.apply(value, found, jnp.int32(0))
    assert_close(of_plans, arrays["out/value_of_final_chain"], 5e-4, "their values")


# Decision Diffuser --------------------------------------------------------------------


@of("dd_loss")
def test_decision_diffuser_trains_as_the_authors_does(file):
    """Their loss is half the sum of two, which one optimiser takes down."""
    arrays = files.load(file)
    parts = planners.decision_parts(arrays)

    def models(prefix):
        planner = unets.params(arrays, f"{prefix}model.")
        return planner, planners.inverse_params(arrays, f"{prefix}inv_model.")

    @once
    def update(state, batch, draws):
        return decision_diffuser.update_step(parts, state, batch, draws)

    pair = (planners.model(parts.optimizer, params) for params in models("init/"))
    state = decision_diffuser.TrainState(jnp.zeros((), jnp.int32), *pair)
    reader, updates = Reader(arrays), setting(arrays, "steps")
    A = setting(arrays, "action_dim")
    for i in range(updates):
        rows = planners.batches(arrays, i)
        window = planners.joined(arrays["batch/trajectories"][rows])
        label = planners.joined(arrays["batch/returns"][rows])[:, 0]
        batch = decision_diffuser.Batch(window[..., A:], window[..., :A], label)
        draws = planners.decision_draws(arrays, reader)
        state, metrics = update(state, batch, draws)
        norms = metrics["planner_grad_norm"], metrics["inverse_grad_norm"]
        found = {
            "loss": metrics["planner_loss"] + metrics["inverse_loss"],
            "diffusion_loss": metrics["bc_loss"],
            "inverse_loss": metrics["inverse_error"],
        }
        for name, value in found.items():
            expected = arrays[f"metric/{name}"][rows].mean()
            assert_close(value, expected, 2e-5, f"{name}, update {i}")
        norm = arrays["metric/grad_norm"][i]
        assert_close(np.hypot(*norms), norm, 2e-5, f"norm, update {i}")
    reader.finish()
    learned = (state.planner, state.inverse)
    for model, params, average in zip(
        learned, models("final/"), models("final_ema/"), strict=True
    ):
        rate = setting(arrays, "lr")
        assert_same_parameters(model.params, params, rate, updates)
        assert_same_parameters(model.average, average, rate, updates)


@of("dd_sample")
def test_decision_diffusers_plans_and_actions_are_the_authors(file):
    """A return and a state of its own in each row; all noise at half its size."""
    arrays = files.load(file)
    parts = planners.decision_parts(arrays)
    learned = decision_diffuser.Learned(
        unets.params(arrays, "param/model."),
        planners.inverse_params(arrays, "param/inv_model."),
    )
    reader = Reader(arrays)
    drawn = [reader.next("normal")[:, None] for _ in range(parts.schedule.steps + 1)]
    reader.finish()
    inputs = (
        jnp.asarray(arrays["in/condition/0"])[:, None],
        ChainDraws(drawn[0], jnp.stack(drawn[1:], axis=1)),
        jnp.asarray(arrays["in/returns"]),
    )

    @once
    @jax.vmap
    def act(seen, draws, returns):
        weights = (parts.config.guidance,)
        plan = decision_diffuser.denoise(
            parts, learned, seen, draws, tuple(returns), weights
        )[0]
        return plan, decision_diffuser.follow(parts, learned, plan[1], seen[-1])

    plans, actions = act(*inputs)
    assert_close(plans, arrays["out/trajectories"], 5e-4, "plans")
    assert_close(actions, np.clip(arrays["out/action"], -1, 1), 5e-4, "actions")
