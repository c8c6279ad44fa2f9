"""Policies by denoising and by flows, as the systems put them together.

An `Actor` is a network with the chain that turns its predictions into actions.  Systems
differ in how they train it and in what they do with its samples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdql.agents.base import Acting, Data, action_bounds, acts, blank
from jdql.diffusion import constraints, flow, reverse, samplers
from jdql.diffusion.schedules import Schedule
from jdql.networks.mlp import (
    MLP,
    Critic,
    NoiseNetwork,
    conditioned,
    value_function,
)
from jdql.rl import selection, targets
from jdql.types import (
    Array,
    Constraint,
    DataSpec,
    Float,
    Params,
    PRNGKeyArray,
)


class ActorCritic(NamedTuple):
    """What a policy needs that chooses among an actor's samples: both parameters."""

    actor: Params
    critic: Params


class Actor(NamedTuple):
    """Pure functions of an actor's parameters; D numbers make an action.

    Attributes:
      init: `(key) -> params`.
      predict: `(params, observation [*B, O]) -> ((x [*B, D], k or time) -> [*B, D])`,
        the network for given observations.
      draw: `(key, batch shape *B) -> draws`, the noise of `sample`.
      sample: `(params, observation [*B, O], draws, guide=None, clamp=None) -> action
        [*B, D]`, within bounds and differentiable from end to end; guide and clamp are
        those of `samplers.Sampler.sample`.
      to_bounds: clips actions [*B, D] to their bounds.
    """

    init: Callable[[PRNGKeyArray], Params]
    predict: Callable[[Params, Array], Callable[[Array, Array], Array]]
    draw: Callable[..., Any]
    sample: Callable[..., Array]
    to_bounds: Constraint

    def propose(
        self, params: Params, observation: Float[Array, "*B O"], key: PRNGKeyArray
    ) -> Float[Array, "*B D"]:
        """Actions with noise of their own; the key is consumed."""
        draws = self.draw(key, observation.shape[:-1])
        return self.sample(params, observation, draws)


def diffusion(network: nn.Module, spec: DataSpec, sampler: samplers.Sampler) -> Actor:
    """An actor that denoises.

    Args:
      network: predicts noise, `(x_k, k, observation) -> [*B, A]`.
      spec: sizes of the data.
      sampler: of actions.
    """
    predict = functools.partial(conditioned, network)

    def init(key: PRNGKeyArray) -> Params:
        observation, action = blank(spec)
        return network.init(key, action, jnp.zeros((), int), observation)

    def draw(key: PRNGKeyArray, shape: tuple[int, ...]) -> reverse.ChainDraws:
        return reverse.draw_chain(key, sampler.draws, (*shape, spec.action_dim))

    def sample(
        params: Params, observation: Array, draws: reverse.ChainDraws, **given: Any
    ) -> Array:
        return sampler.sample(predict(params, observation), draws, **given)

    to_bounds = constraints.clip_to(*action_bounds(spec))
    return Actor(init, predict, draw, sample, to_bounds)


def noise_mlp(config: Any, spec: DataSpec, schedule: Schedule) -> Actor:
    """The noise network of Diffusion-QL with the sampler that a system's settings name.

    Args:
      config: settings with `hidden` and `step_dim`, and those of `acting_sampler`.
      spec: sizes and bounds of the data.
      schedule: of the diffusion.
    """
    network = NoiseNetwork(spec.action_dim, config.hidden, config.step_dim)
    return diffusion(network, spec, acting_sampler(config, spec, schedule))


def acting_sampler(
    config: Any, spec: DataSpec, schedule: Schedule, **options: Any
) -> samplers.Sampler:
    """The sampler that a system's settings name, whose x0_hat obeys the action bounds.

    Args:
      config: settings with `sampler`, `sample_steps`, `variance` and `unroll`.
      spec: bounds of the actions.
      schedule: of the diffusion.
      **options: of `samplers.make_sampler`, in the place of the settings'.

    Raises:
      ValueError: as `samplers.make_sampler`.
    """
    settings = {
        "name": config.sampler,
        "steps": config.sample_steps,
        "variance": config.variance,
        "constraint": constraints.clip_to(*action_bounds(spec)),
        "unroll": config.unroll,
    }
    return samplers.make_sampler(schedule, **{**settings, **options})


def full_chain(
    config: Any, spec: DataSpec, schedule: Schedule, *, remat: bool = False
) -> samplers.Sampler:
    """The ancestral chain over all steps, for training: `acting_sampler` otherwise."""
    return acting_sampler(
        config, spec, schedule, name="ancestral", steps=None, remat=remat
    )


def flowing(
    network: nn.Module, spec: DataSpec, steps: int, *, unroll: int = 1, length: int = 1
) -> Actor:
    """An actor that follows a flow by Euler's method, of `length` actions in a row.

    Args:
      network: velocity, `(x_t, time, observation) -> [*B, D]`, D = length A.
      spec: sizes and bounds of the data.
      steps: network calls.
      unroll: steps laid out in a row.
      length: h, actions in a chunk.

    Raises:
      ValueError: for fewer than one step.
    """
    flow.check_steps(steps)
    predict, size = functools.partial(conditioned, network), length * spec.action_dim
    to_bounds = chunk_bounds(spec, length)

    def init(key: PRNGKeyArray) -> Params:
        observation, _ = blank(spec)
        return network.init(key, jnp.zeros((1, size)), jnp.zeros(()), observation)

    def draw(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
        return jax.random.normal(key, (*shape, size))

    def sample(params: Params, observation: Array, noise: Array, **given: Any) -> Array:
        velocity = predict(params, observation)
        action = flow.euler(velocity, noise, steps, unroll=unroll, **given)
        return to_bounds(action)

    return Actor(init, predict, draw, sample, to_bounds)


def chunk_bounds(spec: DataSpec, length: int) -> Constraint:
    """Clips chunks of `length` flattened actions to the action bounds."""
    low, high = action_bounds(spec)
    return constraints.clip_to(jnp.tile(low, length), jnp.tile(high, length))


def best_of(
    count: int,
    actor: Actor,
    value: Callable[[Params, Array, Array], Array],
    select: selection.Selection,
    length: int = 1,
) -> Acting:
    """The policy of an `ActorCritic` that carries the best of several samples out.

    Args:
      count: N, samples of the actor.
      actor: proposes them.
      value: `(critic params, observation [N, O], action [N, D]) -> [N]`.
      select: chooses by the values.
      length: h, actions in a sample.

    Raises:
      ValueError: for fewer than one sample.
    """
    plan = selection.best_of(
        count,
        lambda learned, *inputs: actor.propose(learned.actor, *inputs),
        lambda learned, *pair: value(learned.critic, *pair),
        select,
    )
    return acts(plan, length)


class ImplicitPolicy(NamedTuple):
    """What a policy over advantages needs: three networks' parameters."""

    actor: Params
    critic: Params
    value: Params


def best_advantage(
    count: int,
    actor: Actor,
    critic: Critic,
    value: MLP,
    select: selection.Selection,
) -> Acting:
    """The policy of an `ImplicitPolicy` that chooses by Q - V of several samples.

    Args:
      count: N, samples of the actor.
      actor: proposes them.
      critic: the twin critic, of which the smaller value counts.
      value: V.
      select: chooses by the advantages.

    Raises:
      ValueError: for fewer than one sample.
    """
    v_of = value_function(value)

    def advantage(
        learned: ImplicitPolicy,
        observation: Float[Array, "N O"],
        action: Float[Array, "N A"],
    ) -> Float[Array, " N"]:
        q = targets.clipped_double_q(critic.apply(learned.critic, observation, action))
        return q - v_of(learned.value, observation[0])

    def propose(learned: ImplicitPolicy, *inputs: Any) -> Array:
        return actor.propose(learned.actor, *inputs)

    return acts(selection.best_of(count, propose, advantage, select))


def off_bounds(
    sample: Callable[[PRNGKeyArray, Data], Any], spec: DataSpec, limit: float | Array
) -> Callable[[PRNGKeyArray, Data], Any]:
    """A `sample_batch` whose actions are at most `limit` of the way to their bounds.

    Args:
      sample: of transitions or of chunks.
      spec: bounds of the actions.
      limit: a share just below 1.
    """
    low, high = action_bounds(spec)
    middle, reach = (high + low) / 2, limit * (high - low) / 2

    def sample_batch(key: PRNGKeyArray, data: Data) -> Any:
        batch = sample(key, data)
        action = constraints.clip(batch.action, middle - reach, middle + reach)
        return batch._replace(action=action)

    return sample_batch
