from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.evaluate import evaluate
from jdql.agents import diffusion_bc
from jdql.config import Config, DataConfig, EvalConfig, TrainConfig
from jdql.data import scaling
from jdql.data.dataset import agent_spec
from jdql.data.scaling import Affine, Scaling, Table
from jdql.data.sources import load
from jdql.runtime import checkpoint, stored, train
from jdql.runtime.metrics import read_rows
from jdql.types import DataSpec
from tests.data.noise import CONFIG, noise, quiet

SEEN = np.array([[1.0, 5.0, 100.0], [3.0, 5.0, 100.5], [5.0, 5.0, 101.0]])
TINY = {"hidden": (8, 8), "batch_size": 4, "diffusion_steps": 2}
NAMES = tuple(scaling.FITS)
SCALED = dataclasses.replace(
    CONFIG, scale_observations="gaussian", scale_actions="limits"
)


def test_identity_changes_no_bit():
    side = scaling.identity(SEEN)
    g = np.random.default_rng(0)
    values = g.normal(size=(1000, 3)) * 10.0 ** g.integers(-30, 30, (1000, 3))
    values[0] = 0.0, -0.0, 1e-42  # a negative zero, and a number below the normal ones
    for x in (values, values.astype(np.float32)):
        assert side.forward(x).tobytes() == x.tobytes()
        np.testing.assert_array_equal(side.inverse(x), x)
    x = jnp.asarray(values[1:], jnp.float32)
    assert np.asarray(jax.jit(Affine.forward)(side, x)).tobytes() == x.tobytes()
    assert np.asarray(jax.jit(Affine.inverse)(side, x)).tobytes() == x.tobytes()


def test_gaussian_by_hand():
    side = scaling.gaussian(SEEN)
    np.testing.assert_allclose(side.shift, [3, 5, 100.5])
    # divisor N: variance (4 + 0 + 4) / 3; the constant column keeps its scale
    np.testing.assert_allclose(
        side.scale, [1 / np.sqrt(8 / 3), 1.0, np.sqrt(6)], rtol=1e-6
    )
    assert side.shift.dtype == side.scale.dtype == np.float32
    made = side.forward(SEEN.astype(np.float32))
    np.testing.assert_allclose(made[:, 0], [-np.sqrt(1.5), 0, np.sqrt(1.5)], rtol=1e-5)
    np.testing.assert_array_equal(made[:, 1], 0)
    # divisor N - 1: deviations 2 and 1 / 2
    other = scaling.gaussian(SEEN, ddof=1, epsilon=0.5)
    np.testing.assert_allclose(other.scale, [1 / 2.5, 1.0, 1.0], rtol=1e-6)
    free = scaling.gaussian(SEEN, ddof=1, centred=False)
    np.testing.assert_allclose(free.forward(SEEN)[0], [0.5, 5, 200], rtol=1e-6)


def test_limits_by_hand():
    side = scaling.limits(SEEN)
    np.testing.assert_allclose(
        side.forward(SEEN), [[-1, 0, -1], [0, 0, 0], [1, 0, 1]], atol=1e-6
    )
    # What was not seen goes on in a line; a constant column keeps its unit.
    np.testing.assert_allclose(side.forward(np.array([7.0, 8.0, 100.25])), [2, 3, -0.5])
    np.testing.assert_allclose(side.inverse(np.array([2.0, 3, -0.5])), [7, 8, 100.25])
    free = scaling.limits(SEEN, centred=False)
    np.testing.assert_allclose(free.forward(SEEN)[0], [0.2, 1, 100 / 101], rtol=1e-6)
    # A range of 1 is none where less than 2 is called constant.
    tolerant = scaling.limits(SEEN, tolerance=2.0)
    np.testing.assert_allclose(tolerant.forward(SEEN)[:, 2], [0, 0.5, 1])


def test_cdf_by_hand():
    """F of 0, 1, 1, 3 is 1/4, 3/4 and 1 at its values."""
    side = scaling.cdf(np.array([[0.0], [1.0], [1.0], [3.0]]))
    np.testing.assert_array_equal(side.knot[:, 0], [0, 1, 3])
    np.testing.assert_array_equal(side.position[:, 0], [-0.5, 0.5, 1])
    x = np.array([[-9.0], [0.0], [0.25], [1.0], [2.0], [3.0], [9.0]])
    y = [[-0.5], [-0.5], [-0.25], [0.5], [0.75], [1.0], [1.0]]
    np.testing.assert_array_equal(side.forward(x), y)
    np.testing.assert_array_equal(side.inverse(np.array(y))[1:-1], x[1:-1])
    np.testing.assert_array_equal(side.inverse(np.array([[-1.0], [2.0]])), [[0], [3]])


def test_columns_of_a_cdf_may_have_different_numbers_of_knots():
    side = scaling.cdf(SEEN)
    assert side.knot.shape == (3, 3)
    np.testing.assert_allclose(
        side.forward(SEEN), [[-1 / 3, 0, -1 / 3], [1 / 3, 0, 1 / 3], [1, 0, 1]], 1e-6
    )
    many = np.column_stack([np.arange(10.0), np.arange(10) % 2, np.full(10, 7.0)])
    side = scaling.cdf(many)
    for array in (np.asarray, jnp.asarray):
        made = side.forward(array(many.astype(np.float32)))
        np.testing.assert_allclose(made[:, 0], np.arange(-0.8, 1.1, 0.2), atol=1e-6)
        np.testing.assert_array_equal(made[:, 1], many[:, 1])  # F(0) = 1/2, F(1) = 1
        np.testing.assert_array_equal(made[:, 2], 0)
        np.testing.assert_allclose(side.inverse(made), many, rtol=1e-5, atol=1e-5)


def test_a_thinned_cdf_is_near_the_whole_one_and_keeps_jumps():
    g = np.random.default_rng(0)
    column = g.normal(size=20_000) ** 3
    column[:5000] = 0.5  # a quarter of the data
    whole = scaling.cdf(column[:, None], knots=10**6)
    thin = scaling.cdf(column[:, None], knots=400)
    assert len(whole.knot) == 15_001
    assert 200 < len(thin.knot) <= 400
    x = np.concatenate([column, np.linspace(-5, 5, 1001)])[:, None]
    error = np.abs(thin.forward(x) - whole.forward(x)).max()
    assert 0 < error <= 2 / 200
    ends = np.array([[column.min()], [0.5], [column.max()]])
    np.testing.assert_allclose(thin.forward(ends), whole.forward(ends), atol=1e-6)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("name", NAMES)
def test_round_trips(name, array):
    g = np.random.default_rng(1)
    values = g.normal([5, -100, 0.01], [1, 30, 0.003], (200, 3)).astype(np.float32)
    side = scaling.FITS[name](values)
    x = array(values.reshape(4, 50, 3))
    made = jax.jit(lambda s, v: s.forward(v))(side, x) if array is jnp.asarray else None
    made = side.forward(x) if made is None else made
    assert isinstance(made, type(x))
    assert made.dtype == np.float32
    back = side.inverse(made)
    np.testing.assert_allclose(back, x, rtol=2e-5, atol=1e-6)
    one = side.forward(x[0, 0])
    np.testing.assert_allclose(one, made[0, 0], rtol=1e-6)
    if scaling.FITS[name] in scaling.UNIT:
        assert np.abs(made).max() <= 1 + 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [0.0, -3.0, 1e6])
def test_a_constant_column_does_not_explode(name, level):
    """Nor does one whose float32 values differ by rounding alone."""
    g = np.random.default_rng(0)
    rounding = np.abs(np.spacing(np.float32(level))) * (level != 0)
    column = np.float32(level) + rounding * g.choice([0, 1], (100, 1))
    side = scaling.FITS[name](column.astype(np.float32))
    if name == "identity":
        return
    assert np.abs(side.forward(column)).max() <= rounding
    y = np.array([[-1.0], [0.0], [1.0]])
    np.testing.assert_allclose(side.inverse(y) - level, y, atol=2 * rounding)


@pytest.mark.parametrize("name", NAMES)
def test_ignored_columns_are_0_whatever_is_in_them(name):
    side = scaling.ignore(scaling.FITS[name](SEEN), (2,))
    g = np.random.default_rng(0)
    x = g.normal(size=(9, 3)) * 100
    for array in (np.asarray, jnp.asarray):
        made = side.forward(array(x))
        np.testing.assert_array_equal(made[:, 2], 0)
        kept = scaling.FITS[name](SEEN).forward(array(x))
        np.testing.assert_array_equal(made[:, :2], kept[:, :2])
        back = side.inverse(made)
        np.testing.assert_allclose(back[:, 2], 0 if name == "identity" else 100.5)
    with pytest.raises(ValueError, match="column 3, but observations have columns 0"):
        scaling.ignore(side, (3,))


def test_left_columns_are_as_they_were():
    side = scaling.leave(scaling.gaussian(SEEN), (0,))
    np.testing.assert_array_equal(side.forward(SEEN)[:, 0], SEEN[:, 0])
    np.testing.assert_allclose(side.forward(SEEN)[:, 2].std(), 1, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_description_in_json_gives_the_shapes(name):
    made = scaling.fit(
        SEEN, SEEN[:, :2], DataConfig(scale_observations=name, ignore=(1,))
    )
    stored = json.loads(json.dumps(scaling.describe(made)))
    blank = scaling.blank(stored)
    assert jax.tree.structure(blank) == jax.tree.structure(made)
    expected = jax.tree.map(lambda a: (a.shape, a.dtype), made)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), blank) == expected
    assert isinstance(made.observation, Table if name == "cdf" else Affine)


@pytest.mark.parametrize("field", ["scale_observations", "scale_actions"])
def test_unknown_names_get_the_nearest(field):
    config = DataConfig(dataset=("x",), **{field: "gausian"})
    with pytest.raises(ValueError, match="did you mean 'gaussian'") as caught:
        load(config, log=quiet)
    assert str(caught.value).startswith(f"data.{field} must be one of identity, ")
    assert "\n" not in str(caught.value)


def test_identity_by_default():
    source = load(CONFIG, log=quiet)
    assert jax.tree.all(
        jax.tree.map(np.array_equal, source.scaling, _identity(source.dataset))
    )
    np.testing.assert_array_equal(
        source.dataset.observation, noise()["observations"].astype(np.float32)
    )
    assert source.agent_spec == source.spec
    assert source.held_out is None


def _identity(dataset) -> Scaling:
    return Scaling(
        scaling.identity(dataset.observation), scaling.identity(dataset.action)
    )


def test_data_are_scaled_by_the_statistics_of_the_first_observations():
    raw, source = noise(), load(SCALED, log=quiet)
    mean, std = raw["observations"].mean(0), raw["observations"].std(0)
    std[2] = 1.0
    for name, made in (
        ("observations", source.dataset.observation),
        ("next_observations", source.dataset.next_observation),
    ):
        np.testing.assert_allclose(made, (raw[name] - mean) / std, rtol=1e-4, atol=1e-4)
    low, high = raw["actions"].min(0), raw["actions"].max(0)
    np.testing.assert_allclose(
        source.dataset.action,
        2 * (raw["actions"] - low) / (high - low) - 1,
        atol=1e-6,
    )
    assert {a.dtype for a in source.dataset[:4]} == {np.dtype(np.float32)}


def test_agents_see_the_bounds_of_their_scale():
    """The space is [-1.5, 1.1], not symmetric, and data do not fill it."""
    space = DataSpec(3, 2, (-1.5, -1.5), (1.1, 1.1))
    unit = DataSpec(3, 2, (-1.0, -1.0), (1.0, 1.0))
    for name, expected in (("identity", space), ("limits", unit), ("cdf", unit)):
        source = load(dataclasses.replace(SCALED, scale_actions=name), log=quiet)
        assert source.spec == space
        assert source.agent_spec == expected
    source = load(dataclasses.replace(SCALED, scale_actions="gaussian"), log=quiet)
    actions = noise()["actions"]
    expected = (np.array([[-1.5], [1.1]]) - actions.mean(0)) / actions.std(0)
    bounds = source.agent_spec.action_low, source.agent_spec.action_high
    np.testing.assert_allclose(bounds, expected, rtol=1e-5)
    assert source.spec == space


def test_bounds_of_the_identity_are_the_spaces_to_the_last_digit():
    spec = DataSpec(1, 2, (-0.4, -0.1), (0.4, 0.3))
    assert agent_spec(spec, scaling.identity(np.zeros((1, 2))), "identity") == spec


def test_statistics_are_those_of_the_episodes_that_are_kept():
    part = load(dataclasses.replace(SCALED, episodes="2:5"), log=quiet)
    expected = noise()["observations"][10:25].mean(0)
    np.testing.assert_allclose(part.scaling.observation.shift, expected, rtol=1e-5)


def test_held_out_episodes_are_scaled_by_the_training_data():
    config = dataclasses.replace(
        SCALED, held_out=3, scale_actions="cdf", reward="minmax", ignore=(1,)
    )
    raw, source = noise(), load(config, log=quiet)
    training = slice(0, 25)
    assert source.id == "tests.data.noise:noise[:-3]"
    assert source.dataset.size == 25
    held_out = source.held_out
    assert held_out is not None
    assert held_out.episode_ends.tolist() == [5, 10, 15]
    seen = raw["observations"]
    expected = (seen[25:, 0] - seen[training, 0].mean()) / seen[training, 0].std()
    np.testing.assert_allclose(held_out.observation[:, 0], expected, rtol=1e-4)
    np.testing.assert_array_equal(held_out.next_observation[:, 1], 0)
    side = scaling.cdf(raw["actions"][training])
    np.testing.assert_allclose(
        held_out.action, side.forward(raw["actions"][25:]), atol=1e-5
    )
    low, high = raw["rewards"][training].min(), raw["rewards"][training].max()
    expected = 2 * (raw["rewards"][25:] - low) / (high - low) - 1
    np.testing.assert_allclose(held_out.reward, expected, rtol=1e-4, atol=1e-5)
    returns = raw["rewards"][training].reshape(-1, 5).sum(1)
    assert source.data_return[0] == pytest.approx(returns[:-1].mean(), rel=1e-5)


def test_a_run_folder_alone_evaluates_as_training_did(tmp_path):
    """Trained on scaled data; played in the environment's own units."""
    config = Config(
        name="scaled",
        agent=diffusion_bc.Config(**TINY),
        data=DataConfig(
            dataset=("jdql.envs.safety_halfcheetah:random_play",),
            scale_observations="gaussian",
            scale_actions="cdf",
            ignore=(0,),
        ),
        train=TrainConfig(steps=4, log_every=2),
        eval=EvalConfig(
            env="jdql/SafetyHalfCheetah-v0",
            env_module="jdql.envs.safety_halfcheetah",
            env_kwargs={"max_episode_steps": 20},
            every=4,
            episodes=1,
        ),
        seeds=2,
    )
    stored.save(config, tmp_path)
    source = load(config.data, log=quiet)
    train.run(config, source, tmp_path, log=quiet)
    saved = checkpoint.metadata(tmp_path / "checkpoints")
    assert saved["recipe"]["scaling"]["action"] == {"map": "table", "shape": [500, 6]}
    recorded = [row["returns"] for row in read_rows(tmp_path / "evaluations.jsonl")]
    again = [row["returns"] for row in evaluate(config, tmp_path)]
    assert recorded == again
