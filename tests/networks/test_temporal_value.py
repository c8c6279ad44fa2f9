"""Diffuser's value network: leading axes, size, which horizons, refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdql.networks.temporal_value import TemporalValue, check_value_widths
from tests.networks.filled import filled
from tests.networks.test_temporal_unet import block_size, size

TINY = TemporalValue((8, 8), step_dim=4, kernel=3, groups=1)


def test_leading_axes_are_rows_and_a_scalar_step_is_that_of_all():
    x = jax.random.normal(jax.random.key(1), (2, 3, 7, 2))
    k = jnp.arange(6).reshape(2, 3)
    params = filled(TINY, x, k)
    apply = jax.jit(TINY.apply)
    values = apply(params, x, k)
    assert values.shape == (2, 3)
    assert jnp.abs(jnp.diff(values)).min() > 1e-3
    for i in range(2):
        for j in range(3):
            one = apply(params, x[i, j], k[i, j])
            np.testing.assert_allclose(values[i, j], one, atol=1e-5)


def expected_size(D: int, widths: tuple, step: int, left: int) -> int:
    """Parameters, where so many steps are left of the horizon."""
    half, quarter = widths[-1] // 2, widths[-1] // 4
    inputs = (D, *widths[:-1])
    levels = sum(
        block_size(a, b, step, False) + block_size(b, b, step, False)
        for a, b in zip(inputs, widths, strict=True)
    )
    middle = block_size(widths[-1], half, step, False)
    middle += block_size(half, quarter, step, False)
    halves = sum(3 * w * w + w for w in (*widths, half, quarter))
    steps = (step + 1) * 4 * step + (4 * step + 1) * step
    fc = quarter * left
    return steps + levels + middle + halves + (fc + step + 1) * (fc // 2) + fc // 2 + 1


@pytest.mark.parametrize(("H", "left"), [(32, 1), (64, 1), (100, 2), (256, 4)])
def test_the_authors_size_at_any_horizon(H, left):
    """Four levels and two more blocks halve the horizon six times, rounding up."""
    found = size(TemporalValue(), jnp.zeros((H, 14)), jnp.array(0))
    assert found == expected_size(14, (32, 64, 128, 256), 32, left)


def test_widths_that_the_norms_cannot_share_out_are_refused():
    check_value_widths((8, 32), 8)
    for widths, groups in (((8, 16), 8), ((6, 32), 8), ((4,), 1), ((), 8)):
        with pytest.raises(ValueError, match="multiples of its groups"):
            check_value_widths(widths, groups)
