"""Reference scores."""

from __future__ import annotations

import numpy as np
import pytest

from jdql import references


@pytest.mark.parametrize("name", references.REFERENCES)
def test_the_two_references_score_zero_and_a_hundred(name):
    reference = references.find(name)
    scores = references.normalized([[reference.low, reference.high]], name)
    np.testing.assert_allclose(scores, [[0.0, 100.0]])


def test_a_walker_return_by_hand():
    # 100 (3000 - 1.629008) / (4592.3 - 1.629008) = 299837.0992 / 4590.670992
    score = references.normalized(3000.0, "walker2d")
    np.testing.assert_allclose(score, 65.314439, atol=1e-5)


def test_scores_are_not_clipped():
    assert references.normalized([-1.0, 2.0], "antmaze").tolist() == [-100.0, 200.0]


def test_unknown_name_gets_one_line_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'walker2d'") as error:
        references.normalized(1.0, "walker-2d")
    assert "\n" not in str(error.value)


def test_description_names_scale_and_source():
    assert "v2 environments" in references.describe("hopper")
    assert "3234.3" in references.describe("hopper")
    assert "jdql's own" in references.describe("bandit")
    assert "D4RL" not in references.describe("bandit")
