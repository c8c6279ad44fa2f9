"""Optimisers, models and averages, by hand."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdql import optim
from jdql.optim import Averaging, Model
from tests.data.recordings import recorded


def moments(opt) -> optax.ScaleByAdamState:
    """The state of Adam inside a chain of transformations."""
    (found,) = (
        state
        for state in jax.tree.leaves(opt, is_leaf=lambda node: hasattr(node, "mu"))
        if hasattr(state, "mu")
    )
    return found


def linear(params, slope):
    """A loss with a given gradient."""
    products = jax.tree.map(lambda p, s: jnp.sum(p * s), params, slope)
    return sum(jax.tree.leaves(products)), {}


def after(optimizer, params, slope, count=1):
    """The model after steps along a constant gradient."""
    model = optim.start(params, optimizer)
    for _ in range(count):
        model, _ = optim.descend("x", optimizer, model, linear, slope)
    return model


# Models. ------------------------------------------------------------------------------


def test_a_model_starts_with_an_average_only_where_it_is_asked_for():
    optimizer, params = optim.adam(0.1), jnp.array([3.0])
    assert optim.start(params, optimizer).average == ()
    averaged = optim.start(params, optimizer, averaged=True)
    assert averaged.average.tolist() == averaged.params.tolist() == [3.0]
    assert moments(averaged.opt).count == 0


def test_descend_steps_against_the_gradient_and_tells_what_it_saw():
    optimizer = optim.adam(0.1)
    model = optim.start(jnp.array([3.0, -4.0]), optimizer, averaged=True)

    def loss(params, scale, shift):
        return scale * jnp.sum(params**2) + shift, {"size": jnp.sum(jnp.abs(params))}

    new, metrics = optim.descend("actor", optimizer, model, loss, 0.5, 1.0)
    np.testing.assert_allclose(new.params, [2.9, -3.9], rtol=1e-5)
    assert new.average.tolist() == [3.0, -4.0]
    assert moments(new.opt).count == 1
    seen = {name: value.item() for name, value in metrics.items()}
    # The loss and its gradient (3, -4) are those before the step.
    assert seen == {"actor_loss": 13.5, "actor_grad_norm": 5.0, "size": 7.0}


def test_the_norm_that_is_told_is_the_one_before_clipping():
    optimizer = optim.adam(0.1, grad_norm=1.0)
    model = optim.start(jnp.zeros(2), optimizer)
    slope = jnp.array([3.0, 4.0])
    new, metrics = optim.descend("x", optimizer, model, linear, slope)
    assert metrics["x_grad_norm"].item() == 5.0
    np.testing.assert_allclose(moments(new.opt).mu, [0.06, 0.08], rtol=1e-5)


# Averages. ----------------------------------------------------------------------------


def model_of(params: float, average: float) -> Model:
    return Model({"a": jnp.array(params)}, (), {"a": jnp.array(average)})


def test_polyak_moves_by_its_rate():
    new = optim.polyak({"a": jnp.array(1.0)}, {"a": jnp.array(3.0)}, 0.25)
    assert new["a"].item() == pytest.approx(1.5)


def test_an_average_follows_its_own_parameters_or_others():
    model, rule = model_of(3.0, 1.0), Averaging(0.25)
    assert optim.follow(model, rule).average["a"].item() == pytest.approx(1.5)
    other = optim.follow(model, rule, towards={"a": jnp.array(-3.0)})
    assert other.average["a"].item() == pytest.approx(0.0)
    assert other.params["a"].item() == 3.0


@pytest.mark.parametrize(
    ("start", "period", "moving"),
    [
        (0, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, 1, [3, 4, 5, 6, 7]),
        (0, 3, [0, 3, 6]),
        (3, 3, [3, 6]),
        (4, 3, [6]),
    ],
)
def test_an_average_moves_from_its_start_on_at_multiples_of_its_period(
    start, period, moving
):
    rule, counts = Averaging(0.5, start, period), jnp.arange(8)

    def moved(count):
        return optim.follow(model_of(3.0, 1.0), rule, count=count).average["a"]

    expected = np.where(np.isin(counts, moving), 2.0, 1.0)
    np.testing.assert_array_equal(jax.vmap(moved)(counts), expected)


def test_a_rate_may_be_traced():
    rates = jnp.array([0.0, 0.5, 1.0])
    moved = jax.vmap(lambda rate: optim.follow(model_of(3.0, 1.0), Averaging(rate)))
    np.testing.assert_allclose(moved(rates).average["a"], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("file", recorded("dp_schedule"))
def test_the_power_rule_is_diffusion_policys(file):
    """The decays that their code used at its first 21 calls, and at late ones."""
    r = np.load(file)
    early = [n for n in r if n.startswith("ema_decay/")]
    assert early
    for name in early:
        _, power, after = name.split("/")
        if after != "after0":
            pytest.skip("a rule that begins later is not offered")
        rate = optim.power_rule(float(power.removeprefix("power")))
        late = r[f"ema_decay_late/{power}/{after}"]
        counts = [*range(len(r[name])), *(10 ** np.arange(2, 2 + len(late)))]
        decays = [1 - rate(int(n)) for n in counts]
        np.testing.assert_allclose(decays, [*r[name], *late], atol=1e-6)


def test_an_average_by_the_power_rule():
    """Copies at the first two counts; at n, 1 - n^-1/2 of the old average stays."""
    rule = Averaging(optim.power_rule(0.5, largest=0.6))

    def moved(count):
        return optim.follow(model_of(3.0, 1.0), rule, count=count).average["a"]

    counts = jnp.array([0, 1, 2, 3, 4, 7, 100])
    expected = [3.0, 3.0, 1 + 2 * 0.5**0.5, 1 + 2 * 3**-0.5, 2.0, 1.8, 1.8]
    np.testing.assert_allclose(jax.vmap(moved)(counts), expected, rtol=1e-6)


# Optimisers. --------------------------------------------------------------------------


def test_the_first_adam_step_has_the_size_of_the_learning_rate():
    new = after(optim.adam(0.1), jnp.array([1.0, -2.0]), jnp.array([5.0, -0.001]))
    np.testing.assert_allclose(new.params, [0.9, -1.9], rtol=1e-4)


def test_one_joint_norm_is_clipped():
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    slope = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    new = after(optim.adam(1.0, grad_norm=1.0), params, slope)
    mean = moments(new.opt).mu  # (1 - 0.9) of the clipped gradient
    assert mean["a"].item() == pytest.approx(0.06)
    assert mean["b"].item() == pytest.approx(0.08)


def test_each_member_of_an_ensemble_has_a_norm_of_its_own():
    optimizer = optim.per_member(optim.adam(1.0, grad_norm=1.0))
    slope = jnp.array([[3.0, 4.0], [0.3, 0.4]])  # of norms 5 and 0.5
    new = after(optimizer, jnp.zeros((2, 2)), slope)
    expected = [[0.06, 0.08], [0.03, 0.04]]
    np.testing.assert_allclose(moments(new.opt).mu, expected, rtol=1e-5)
    assert moments(new.opt).count.tolist() == [1, 1]


@pytest.mark.parametrize("make", [optim.adam, optim.adamw])
def test_a_rate_falls_by_half_a_cosine_to_nothing(make):
    """Steps of a constant gradient have the size of the rate: 0.1, 0.05, then 0."""
    optimizer = make(0.1, decay_steps=2)
    at = [after(optimizer, jnp.ones(1), jnp.ones(1), n).params.item() for n in range(5)]
    np.testing.assert_allclose(at, [1.0, 0.9, 0.85, 0.85, 0.85], atol=1e-5)


def test_without_a_decay_the_rate_stays():
    new = after(optim.adam(0.1), jnp.ones(1), jnp.ones(1), 4)
    assert new.params.item() == pytest.approx(0.6, abs=1e-5)


def test_adamw_decays_matrices_only():
    optimizer = optim.adamw(0.1, decay_steps=100, weight_decay=0.5)
    params = {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.full((1,), 2.0)}
    slope = {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}
    new = after(optimizer, params, slope).params
    assert new["kernel"].item() == pytest.approx(2.0 * (1 - 0.1 * 0.5))
    assert new["bias"].item() == 2.0


def test_everything_decays_where_it_is_asked_for():
    optimizer = optim.adamw(0.1, weight_decay=0.5, decays=optim.everything)
    new = after(optimizer, jnp.full((1,), 2.0), jnp.zeros(1)).params
    assert new.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5))


def test_the_moments_and_their_guard_are_those_asked_for():
    """After one gradient g, mu / (1 - b1) = g and the root of nu / (1 - b2) is |g|."""
    optimizer = optim.adamw(1.0, betas=(0.8, 0.5), eps=3.0)
    new = after(optimizer, jnp.zeros(1), jnp.array([5.0]))
    assert moments(new.opt).mu.item() == pytest.approx(0.2 * 5)
    assert moments(new.opt).nu.item() == pytest.approx(0.5 * 25)
    assert new.params.item() == pytest.approx(-5 / (5 + 3))


@pytest.mark.parametrize("file", recorded("dp_schedule"))
def test_the_rate_of_every_update_is_diffusion_policys(file):
    r = np.load(file)
    found = [n for n in r if n.startswith("lr/cosine/") and not n.endswith("/base")]
    assert found
    for name in found:
        warmup, total = (int(re.sub(r"\D", "", n)) for n in name.split("/")[2:])
        rates = optim.learning_rates(float(r[f"{name}/base"]), total, warmup)
        assert callable(rates)
        made = [rates(n) for n in range(len(r[name]))]
        np.testing.assert_allclose(made, r[name], rtol=1e-5, atol=1e-10)
        assert made[0] == 0


def test_a_warm_up_leads_to_a_rate_that_stays():
    optimizer = optim.adamw(jnp.float32(0.2), warmup=4)
    at = [after(optimizer, jnp.ones(1), jnp.ones(1), n).params.item() for n in range(7)]
    steps = [0.0, 0.05, 0.1, 0.15, 0.2, 0.2]
    np.testing.assert_allclose(-np.diff(at), steps, atol=1e-5)


def test_a_warm_up_as_long_as_training_is_refused():
    with pytest.raises(ValueError, match="warmup must be less than decay_steps, 5"):
        optim.adamw(0.1, decay_steps=5, warmup=5)
    with pytest.raises(ValueError, match="warmup must be at least 0, got -1"):
        optim.adamw(0.1, warmup=-1)


@pytest.mark.parametrize("make", [optim.adam, optim.adamw])
def test_a_decay_over_no_steps_is_refused(make):
    with pytest.raises(ValueError, match="decay_steps must be at least 1, got 0"):
        make(0.1, decay_steps=0)
