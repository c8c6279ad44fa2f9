"""The numbers of other authors: their chains and losses from their networks' outputs.

The folder `goldens_systems` holds what the authors' own code of Diffusion Policy,
Diffuser and Decision Diffuser drew, computed and put out.  Here their networks are
played back: what is compared is all that samplers, guides, clamps and losses do.
"""

from __future__ import annotations

import functools
import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.diffusion import (
    constraints,
    guidance,
    losses,
    process,
    reverse,
    samplers,
    schedules,
)


@functools.cache
def recordings() -> dict[str, list[Path]]:
    """The files of every kind."""
    shared = Path(os.getenv("JDQL_SHARED", Path(__file__).parents[3] / "shared"))
    folders = [
        shared / "goldens_systems",
        *map(Path, filter(None, [os.getenv("JDQL_GOLDENS_SYSTEMS")])),
    ]
    found: dict[str, list[Path]] = {}
    for file in (file for folder in folders for file in sorted(folder.glob("*.npz"))):
        with np.load(file) as arrays:
            if "config/kind" in arrays.files:
                found.setdefault(str(arrays["config/kind"]), []).append(file)
    return found


def of_kind(*kinds: str):
    """Runs a test on every recording of these kinds."""
    files = [file for kind in kinds for file in recordings().get(kind, [])]
    return pytest.mark.parametrize(
        "file",
        [pytest.param(file, id=file.stem) for file in files]
        or [pytest.param(None, marks=pytest.mark.skip(reason="no recordings here"))],
    )


class Recording:
    """The arrays of a file; settings as Python values."""

    def __init__(self, file: Path):
        with np.load(file) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}

    def __getitem__(self, name):
        return self.arrays[name]

    def config(self, name, default=None):
        value = self.arrays.get(f"config/{name}")
        return default if value is None else value.item()

    def draws(self, what):
        """All draws of one sort, in order."""
        names = sorted(n for n in self.arrays if n.startswith("draw/"))
        return [self[name] for name in names if name.endswith(what)]

    def chain_draws(self, count, temperature=1.0):
        """A chain's noise; the draw of the last step, times zero, may be missing."""
        start, *noises = (temperature * draw for draw in self.draws("normal"))
        noises += [np.zeros_like(start)] * (count - len(noises))
        return reverse.ChainDraws(
            jnp.asarray(start), jnp.asarray(noises[:count]).reshape(-1, *start.shape)
        )

    def cosine(self, setting):
        return schedules.make_schedule("cosine", self.config(setting))


def clip(wanted: bool):
    unit = constraints.clip_to(jnp.array(-1.0), jnp.array(1.0))
    return unit if wanted else constraints.unconstrained


def parameterisation(predicts_noise: bool):
    return process.EPSILON if predicts_noise else process.X0


STEP, WHOLE = 1e-5, 5e-4  # tolerances of one step, and of a chain of them


class Tape:
    """Recorded outputs, one for each of the steps k in their order, and what was asked.

    `play` is a network: it returns the output of the step that it is told.
    """

    def __init__(self, steps, outputs):
        self.steps, self.outputs, self.seen = list(steps), outputs, {}

    def play(self, x, k):
        jax.debug.callback(lambda x, k: self.seen.update({int(k): x}), x, k)
        place = np.zeros(max(self.steps) + 1, int)
        place[self.steps] = np.arange(len(self.steps))
        return jnp.asarray(self.outputs)[jnp.asarray(place)[k]]

    def inputs(self):
        """What it was shown, in the order of the steps; all of them and no other."""
        jax.effects_barrier()
        assert sorted(self.seen) == sorted(self.steps)
        return [np.asarray(self.seen[k]) for k in self.steps]


def sample(sampler, tape, draws, *asked):
    return np.asarray(jax.jit(lambda d: sampler.sample(tape.play, d, *asked))(draws))


def compare_chain(actual, expected):
    """Every sample of a chain; each comes from those before it."""
    np.testing.assert_allclose(actual[:2], expected[:2], atol=STEP)
    np.testing.assert_allclose(actual, expected[: len(actual)], atol=WHOLE)


# Diffuser and Decision Diffuser -------------------------------------------------------


def known_states(r: Recording, actions: int, shape):
    """The states that are given, behind the actions of their step."""
    mask, values = np.zeros(shape, bool), np.zeros(shape, np.float32)
    for time in r["config/condition_times"]:
        mask[:, time, actions:] = True
        values[:, time, actions:] = r[f"in/condition/{time}"]
    return constraints.inpaint(mask, values)


def tape(r: Recording, outputs):
    return Tape(range(r.config("n_timesteps") - 1, -1, -1), outputs)


def replay(r: Recording, network: Tape, actions, guide=None, temperature=1.0):
    """The sample that the authors' sampler makes of the recorded outputs."""
    sampler = samplers.make_sampler(
        r.cosine("n_timesteps"),
        "ancestral",
        constraint=clip(r.config("clip_denoised", False)),
        parameterisation=parameterisation(r.config("predict_epsilon")),
    )
    draws = r.chain_draws(sampler.draws, temperature)
    clamp = known_states(r, actions, r["chain"].shape[1:])
    return sample(sampler, network, draws, guide, clamp)


@of_kind("diffuser_sample")
def test_diffuser_samples(file):
    r = Recording(file)
    network = tape(r, r["pred"])
    x = replay(r, network, r.config("action_dim"))
    compare_chain([*network.inputs(), x], r["chain"])


@of_kind("diffuser_guided")
def test_guided_diffuser_samples(file):
    """The gradients are played back too, and clamped moves lie between them."""
    r = Recording(file)
    repeats = r.config("n_guide_steps")
    moves = [tape(r, r["guide/gradients"][:, i]) for i in range(repeats)]
    turns = itertools.cycle(moves)
    # The flag says that the deviation scales the gradient; the variance does.
    if not r.config("scale_grad_by_std"):
        pytest.skip("gradients that no variance scales are not offered")
    guide = guidance.diffuser(
        lambda x, k: next(turns).play(x, k),
        r.config("scale"),
        repeats=repeats,
        stop=r.config("t_stopgrad"),
    )
    network = tape(r, r["pred"])
    x = replay(r, network, r.config("action_dim"), guide)
    compare_chain([*moves[0].inputs(), x], r["chain"])
    # The network sees what the last move made, under the clamp again.
    variance = reverse.reverse_steps(r.cosine("n_timesteps")).noise ** 2
    clamp = known_states(r, r.config("action_dim"), r["chain"].shape[1:])
    moved = r["chain"][:-1]
    for i in range(repeats):
        guided = np.array(moves[0].steps) >= r.config("t_stopgrad")
        scale = (r.config("scale") * variance * guided)[:, None, None, None]
        moved = moved + scale * r["guide/gradients"][:, i]
        moved = np.stack([clamp(jnp.asarray(x, jnp.float32)) for x in moved])
    np.testing.assert_allclose(network.inputs(), moved, atol=WHOLE)


@of_kind("dd_sample")
@pytest.mark.parametrize("stacked", [True, False])
def test_decision_diffuser_samples(file, stacked):
    """Classifier-free, clipped after mixing, all noise at half its temperature."""
    r = Recording(file)
    weight = r.config("condition_guidance_w")
    without, given = r["pred/dropped"], r["pred/given"]
    if stacked:
        network = tape(r, np.stack([without, given], 1))
        guide = guidance.classifier_free_stacked(weight)
    else:
        network = tape(r, given)
        guide = guidance.classifier_free(tape(r, without).play, weight)
    x = replay(r, network, 0, guide, temperature=0.5)
    seen = [s[1] if stacked else s for s in network.inputs()]
    compare_chain([*seen, x], r["chain"])
    np.testing.assert_allclose(x, r["out/trajectories"], atol=WHOLE)


# Diffusion Policy ---------------------------------------------------------------------


def scaled(r: Recording, what, x):
    return x * r[f"normalizer/{what}/scale"] + r[f"normalizer/{what}/offset"]


def unscaled(r: Recording, what, x):
    return (x - r[f"normalizer/{what}/offset"]) / r[f"normalizer/{what}/scale"]


def known_observations(r: Recording, shape, observations):
    """The first observations, behind the actions, where they are in-painted."""
    if r.config("conditioning") != "inpaint":
        return None
    A, seen = r.config("action_dim"), r.config("n_obs_steps")
    mask, values = np.zeros(shape, bool), np.zeros(shape, np.float32)
    mask[:, :seen, A:] = True
    values[:, :seen, A:] = scaled(r, "obs", observations[:, :seen])
    return constraints.inpaint(mask, values)


@of_kind("dp_sample")
def test_diffusion_policy_samples(file):
    """DDIM as in diffusers: strides from 0, and a direction that is not clipped."""
    r = Recording(file)
    assert r.config("beta_schedule") == "squaredcos_cap_v2"
    ddim = r.config("scheduler") == "ddim"
    sampler = samplers.make_sampler(
        r.cosine("num_train_timesteps"),
        "ddim" if ddim else "ancestral",
        r.config("num_inference_steps"),
        constraint=clip(r.config("clip_sample")),
        parameterisation=parameterisation(r.config("prediction_type") == "epsilon"),
        **({"grid": schedules.leading_grid, "clip_direction": False} if ddim else {}),
    )
    network = Tape(r["timesteps"].tolist(), r["pred"])
    clamp = known_observations(r, r["chain"].shape[1:], r["in/obs"])
    x = sample(sampler, network, r.chain_draws(sampler.draws), None, clamp)
    compare_chain(network.inputs(), r["chain"])
    A = r.config("action_dim")
    reach = r["normalizer/action/max"] - r["normalizer/action/min"]
    error = (unscaled(r, "action", x[..., :A]) - r["out/action_pred"]) / reach
    assert np.abs(error).max() < WHOLE
    if r.config("conditioning") == "inpaint":
        observations = unscaled(r, "obs", x[..., A:])
        reach = r["normalizer/obs/max"] - r["normalizer/obs/min"]
        assert np.abs((observations - r["out/obs_pred"]) / reach).max() < WHOLE


@of_kind("dp_schedule")
def test_tables_of_diffusion_policy(file):
    r = Recording(file)
    for name in r.arrays:
        match name.split("/"):
            case ["betas", K]:
                schedule = schedules.make_schedule("cosine", int(K))
                variance = reverse.reverse_steps(schedule).noise[::-1] ** 2
                for ours, theirs, tolerance in (
                    (schedule.beta, r[name], 1e-7),
                    (schedule.signal**2, r[f"alphas_cumprod/{K}"], 2e-6),
                    (variance, r[f"variance/{K}"], 2e-6),
                ):
                    np.testing.assert_allclose(ours, theirs, atol=tolerance)
            case ["ddim_timesteps", K, n]:
                schedule = schedules.make_schedule("cosine", int(K))
                grid = schedules.leading_grid(schedule, int(n))
                np.testing.assert_array_equal(grid[::-1], r[name])


# Losses, of the first mini-batch ------------------------------------------------------


def loss_of(r: Recording, schedule, predicts_noise, x0, clamp, **options):
    """The loss of the recorded output; checks what the network is shown."""

    @jax.jit
    def run(x0, k, noise):
        seen = []

        def predict(x, k):
            seen.append(x)
            return jnp.asarray(r["trace/pred"])

        loss = losses.denoising_loss(
            schedule,
            predict,
            x0,
            k,
            noise,
            parameterisation=parameterisation(predicts_noise),
            clamp=clamp,
            **options,
        )
        return loss, seen[0]

    k = r.draws("timestep")[0].astype(np.int32)
    loss, noisy = run(x0, k, r.draws("normal")[0])
    np.testing.assert_allclose(noisy, r["trace/noisy"], atol=STEP)
    return loss.item()


@of_kind("dp_loss")
def test_losses_of_diffusion_policy(file):
    """A mean over all entries, of which those that are in-painted count nothing."""
    r = Recording(file)
    observations, x0 = r["batch/obs"][0], scaled(r, "action", r["batch/action"][0])
    if r.config("conditioning") == "inpaint":
        x0 = np.concatenate([x0, scaled(r, "obs", observations)], -1)
    clamp = known_observations(r, x0.shape, observations)
    loss = loss_of(
        r,
        r.cosine("num_train_timesteps"),
        r.config("prediction_type") == "epsilon",
        x0,
        clamp or constraints.unconstrained,
    )
    assert loss == pytest.approx(r["metric/loss"][0], abs=2e-5, rel=2e-5)


@of_kind("diffuser_loss", "dd_loss")
def test_losses_of_diffuser_and_decision_diffuser(file):
    """Entries are weighted; their constant of clamped noise is put back by hand."""
    r = Recording(file)
    decision = r.config("kind") == "dd_loss"
    A = r.config("action_dim")
    x0 = r["batch/trajectories"][0][..., A if decision else 0 :]
    mask = np.zeros(x0.shape, bool)
    mask[:, r["config/condition_times"], 0 if decision else A :] = True
    noise, weights = r.draws("normal")[0], r["loss_weights"]
    error = {"l2": jnp.square, "l1": jnp.abs}[r.config("loss_type", "l2")]
    loss = loss_of(
        r,
        r.cosine("n_timesteps"),
        r.config("predict_epsilon"),
        x0,
        constraints.inpaint(mask, x0),
        error=error,
        weights=jnp.asarray(weights)[None],
    )
    constant = 0.0
    if r.config("predict_epsilon") and not decision:
        constant = np.mean(np.where(mask, weights * error(x0 - noise), 0))
    expected = r["metric/diffusion_loss" if decision else "metric/loss"][0]
    assert loss + constant == pytest.approx(expected, abs=2e-5, rel=2e-5)
