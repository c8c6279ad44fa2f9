"""What the pictures of plans show: routes, chains, poses and returns by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from experiments import figures
from experiments.launch.resolve import resolve
from experiments.studies.plans import maze, play, pusht, returns, study, two_route
from jdql.agents import decision_diffuser, diffuser
from jdql.config import Config, DataConfig, EvalConfig, TrainConfig
from jdql.data import sources
from jdql.data.dataset import Dataset
from jdql.envs import pusht as board
from jdql.envs import two_route as toy
from jdql.runtime import distributed, stored, train, trained
from jdql.runtime.recipe import Learned

# Two routes ---------------------------------------------------------------------------

LEFT = [[0.0, -1.0], [-0.5, -0.5], [-0.7, -0.1], [-0.6, 0.3], [0.1, 1.0]]
OVER = [[0.0, -1.0], [-0.3, -0.9], [0.3, -0.8], [0.6, -0.4], [0.6, 0.4], [-0.6, 1.0]]
INTO = [[0.0, -1.0], [0.05, -0.7], [-0.05, -0.35]]
SHORT = [[0.0, -1.0], [0.4, -0.6]]


@pytest.mark.parametrize(
    ("path", "route", "changes"),
    # Sides do not count behind the obstacle, nor within the noise of the start.
    [(LEFT, -1, 0), (OVER, 1, 1), (INTO, 0, 0), (SHORT, 0, 0)],
)
def test_a_route_is_the_side_of_the_obstacle(path, route, changes):
    assert two_route.route(np.array(path)) == route
    assert two_route.changes(np.array(path)) == changes


def test_a_route_is_read_where_the_path_crosses():
    # At x = -1 + 0.3 / 1.3 * 1.2 = -0.72, though it ends on the right.
    path = np.array([[-1.0, -0.3], [0.2, 1.0]])
    assert two_route.route(path) == -1
    assert two_route.route(path * [-1, 1]) == 1


def test_a_path_ends_where_it_hits():
    path = np.array([*INTO, [0.0, 0.0], [0.9, 0.0]])
    np.testing.assert_array_equal(two_route.until_hit(path), INTO)
    np.testing.assert_array_equal(two_route.until_hit(np.array(LEFT)), LEFT)


def test_the_table_counts_paths():
    paths = [np.array(path) for path in (LEFT, OVER, INTO, INTO)]
    text = two_route.table([two_route.outcome("Some", paths)])
    row = text.splitlines()[1].replace("%", "").split()
    assert row == ["Some", "4", "50", "25", "25", "25"]


def test_chunks_lead_where_the_environment_does():
    path = two_route.path_of(np.array([[1.0, 0.5], [-2.0, 0.5]]), [0.0, -1.0])
    np.testing.assert_allclose(path, [[0, -1], [0.4, -0.8], [0.0, -0.6]], atol=1e-12)


def test_mean_actions_lead_into_the_obstacle():
    data = toy.dataset()
    mean = two_route.least_squares(data["observations"], data["actions"])
    first = mean(np.array([toy.START]))[0]
    np.testing.assert_allclose(first, [0.0, toy.CLIMB], atol=0.02)
    ends = np.flatnonzero(data["terminals"])
    paths = two_route.demonstrations(data)
    assert [len(path) for path in paths] == (np.diff(ends, prepend=-1) + 1).tolist()
    shown = two_route.outcome("Demonstrations", paths[:100])
    np.testing.assert_array_equal(shown.routes, np.tile([-1, 1], 50))


def test_least_squares_finds_the_polynomial():
    generator = np.random.default_rng(0)
    x, y = position = generator.uniform(-1, 1, (2, 60))
    actions = np.stack([x**5 - 2 * x * y + 1, x**2 * y**3], 1)
    mean = two_route.least_squares(position.T, actions)
    np.testing.assert_allclose(mean(position.T), actions, atol=1e-9)


# Chunks -------------------------------------------------------------------------------


def test_spread_is_of_ways_and_not_of_speeds():
    t = np.linspace(0, 1, 5)[:, None]
    same = np.stack([t * [10.0, 0.0], t**2 * [10.0, 0.0]])
    assert play.spread(same) == pytest.approx(0.0, abs=0.2)  # on a straight way
    fork = np.stack([[10.0, 3.0] * t, [10.0, -3.0] * t])  # 3 t from the mean's way
    assert play.spread(fork) == pytest.approx(3 * np.sqrt(np.mean(t**2)), rel=0.01)


def test_sides_part_two_modes():
    generator = np.random.default_rng(0)
    modes = np.repeat([-1.0, 1.0], 20)
    chunks = modes[:, None, None] + 0.1 * generator.standard_normal((40, 4, 2))
    one = play.sides(chunks)
    assert set(one[:20]) == {one[0]} != set(one[20:]) == {one[-1]}


def test_a_pose_is_read_off_its_points():
    state = np.array([[10.0, 20.0, 300.0, 150.0, 2.5], [0.0, 0.0, 256.0, 256.0, -1.0]])
    for one in state:
        np.testing.assert_allclose(pusht.pose(board.observe(one)), one[2:], atol=1e-9)


def test_a_history_begins_with_the_first_observation():
    seen = np.arange(4.0)[:, None]
    np.testing.assert_array_equal(pusht.history(seen, 0, 3)[:, 0], [0, 0, 0])
    np.testing.assert_array_equal(pusht.history(seen, 3, 2)[:, 0], [2, 3])


# Mazes --------------------------------------------------------------------------------


def test_a_scene_lies_across_the_maze():
    scene = maze.scene_of(resolve("diffuser:pointmaze_umaze"))
    np.testing.assert_array_equal(scene.start, [-1.0, -1.0])  # the U's other end
    np.testing.assert_array_equal(scene.goal, [-1.0, 1.0])
    with pytest.raises(ValueError, match="pointmaze_large"):
        maze.scene_of(resolve("diffuser:hopper_medium"))


def test_levels_have_both_ends():
    assert maze.levels(32, 6) == [0, 12, 20, 27, 31, 32]
    assert maze.levels(2, 6) == [0, 1, 2]


def test_a_plan_promises_its_steps_at_the_goal():
    goal = np.array([1.0, 0.0])
    plans = np.array([[[0.0, 0.0], [0.4, 0.0], [0.6, 0.0]], [[1.0, 0.4]] * 3])
    np.testing.assert_array_equal(maze.promised(plans, goal), [1, 3])


@pytest.mark.usefixtures("unoptimised")
def test_a_fan_holds_start_and_goal():
    config = resolve("diffuser:pointmaze_umaze")
    scene = maze.scene_of(config)
    system = dataclasses.replace(config.agent.tiny(), diffusion_steps=3)
    data = DataConfig(
        dataset=("jdql.envs.synthetic:pointmaze",), scale_observations="limits"
    )
    source = sources.load(data, log=lambda line: None)
    agent = diffuser.make(system, source.agent_spec._replace(scaling=source.scaling))
    own = agent.learned(agent.init(jax.random.key(0)))
    learned = Learned(own, {}, source.scaling, {})
    policy: Any = SimpleNamespace(agent=agent, learned=learned, seed=0)
    states = maze.chain(policy, maze.observation(scene), 5)
    assert states.shape == (4, 5, 4, 2)
    for end, place in ((0, scene.start), (-1, scene.goal)):
        held = np.broadcast_to(place, (4, 5, 2))
        np.testing.assert_allclose(states[:, :, end], held, atol=1e-5)
    middle = states[0, :, 1:-1].reshape(-1, 2)
    assert len(np.unique(middle, axis=0)) == len(middle)  # noise of their own


# Returns ------------------------------------------------------------------------------


def test_returns_are_in_the_units_of_the_labels():
    rows = np.zeros((5, 1), np.float32)
    reward = np.array([1, 2, 3, 4, 5], np.float32)
    ends = np.array([2, 5], np.int32)
    terminal = np.array([0, 0, 0, 0, 1], bool)
    cut = np.array([0, 1, 0, 0, 0], bool)
    data = Dataset(rows, rows, reward, rows, terminal, cut, ends)
    agent = decision_diffuser.Config(
        discount=0.5, termination_penalty=-4.0, returns_scale=None
    )
    units, every = returns.labelled(agent, data)
    assert units.scale == 5.25  # 3 + (4 + (5 - 4) / 2) / 2
    begun = every[returns.starts(data)]
    np.testing.assert_allclose(begun, np.array([2.0, 5.25]) / 5.25, rtol=1e-6)
    second = play.Episode(rows, reward[2:], terminated=True, success=False)
    assert returns.reached(second, units) == pytest.approx(5.25 / units.scale)


def test_targets_span_the_data():
    assert returns.evenly(np.array([0.1, 0.9, 0.5]), 3) == [0.1, 0.5, 0.9]


# The commands -------------------------------------------------------------------------

TINY = ("--config.train.steps=2", "--config.train.log_every=1", "--config.eval.every=2")


@pytest.fixture
def _one_backend(monkeypatch):
    monkeypatch.setattr(distributed, "configure", lambda *_, **__: None)


@pytest.mark.usefixtures("unoptimised", "_one_backend")
def test_plans_are_drawn_of_a_run(monkeypatch, capsys):
    monkeypatch.setattr(two_route, "EPISODES", 2)
    monkeypatch.setattr(two_route, "DRAWN", 4)
    small = (
        "--config.agent.widths=8,8",
        "--config.agent.groups=4",
        "--config.agent.batch_size=4",
        "--config.agent.sample_steps=2",
        "--config.eval.episodes=1",
    )
    command = ["plans", "--only=two_route", "--out=f", "--runs=r", *TINY, *small]
    assert figures.main(command) == 0
    assert Path("f/plans_two_route.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    lengths = [line.split("  ")[0] for line in printed.splitlines()]
    assert {"Chunks, T_a = 8", "Chunks, T_a = 1", "Least squares"} <= set(lengths)
    folder = Path("r/plans/diffusion_policy-two_route-quick-2")
    assert stored.load(folder).agent.horizon == two_route.HORIZON


@pytest.mark.usefixtures("unoptimised", "_one_backend")
def test_returns_are_played_once(monkeypatch):
    monkeypatch.setattr(returns, "EPISODES", 2)
    agent = decision_diffuser.Config().tiny()
    config = Config(
        name="tiny",
        agent=dataclasses.replace(agent, batch_size=2, diffusion_steps=2),
        data=DataConfig(dataset=("jdql.envs.two_route:dataset",)),
        train=TrainConfig(steps=1, log_every=1),
        seeds=1,
    )
    source = sources.load(config.data, log=lambda line: None)
    train.run(config, source, Path("r"), log=lambda line: None)
    where = EvalConfig(env="jdql/TwoRoute-v0", env_module="jdql.envs.two_route")
    stored.save(dataclasses.replace(config, eval=where), "r")
    command = ["returns", "--trained=r", "--targets=1,50", "--out=f"]
    for _ in range(2):  # the second time nothing is played
        assert figures.main(command) == 0
        assert Path("f/returns.png").read_bytes()[:4] == b"\x89PNG"
        lines = Path("r", returns.FILE).read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["target"] for row in rows] == [1.0, 50.0]
        assert [len(row["reached"]) for row in rows] == [2, 2]
    policy = trained.load("r")
    play_episodes = play.policy(policy, 1)
    first, again, other = (
        play_episodes(returns.asked(policy.learned, target), 2)[0].seen
        for target in (1.0, 1.0, 50.0)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["plans", "--only=mazes"], "maze, pusht, two_route"),
        (["plans", "--only=maze", "--config=hopper_medium"], "pointmaze_large"),
        (["plans", "--trained=nowhere"], "there is no run there"),
        (["returns", "--targets=much"], "--targets must be numbers"),
        (["returns", "--config=diffuser:hopper_medium"], "Decision Diffuser"),
    ],
)
@pytest.mark.usefixtures("_one_backend")
def test_a_mistake_is_one_line(arguments, part, capsys):
    assert figures.main(arguments) == 1
    error = capsys.readouterr().err
    assert part in error
    assert len(error.splitlines()) == 1


def test_runs_are_told_apart(tmp_path):
    for part in study.PARTS:
        config = study.config_of(part, None, range(1), tmp_path, full=False)
        stored.save(config, config.run.dir)
    folders = [str(path) for path in tmp_path.iterdir()]
    found = study.by_part(folders)
    assert sorted(found) == sorted(study.PARTS)
    assert found["maze"].name == "diffuser-pointmaze_umaze-cpu-20000"
