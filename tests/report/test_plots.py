"""The figures: what is drawn, what is written, and matplotlib only when needed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from jdql.report import plots
from jdql.report.statistics import Estimate

STEPS = np.array([1_000.0, 2_000.0, 3_000.0])


def line(label, *curves):
    values = np.array(curves, float)
    mean = Estimate(values.mean(0), values.min(0), values.max(0))
    return plots.Line(label, [(STEPS, v) for v in values], STEPS, mean)


def panel(*lines, unit="score"):
    return plots.Panel("Walker2d-v5", "jdql/walker2d/medium-v0", unit, lines)


def test_a_panel_shows_every_seed_their_mean_and_the_interval():
    pytest.importorskip("matplotlib")
    figure = plots.learning_curves([panel(line("ours", [1, 2, 3], [3, 4, 5]))])
    (axis,) = figure.axes
    drawn = [curve.get_ydata().tolist() for curve in axis.lines]
    assert drawn == [[1, 2, 3], [3, 4, 5], [2, 3, 4]]
    assert axis.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert axis.get_xlabel() == "gradient updates (thousands)"
    assert "score" in axis.get_ylabel()
    (shade,) = axis.collections
    assert shade.get_datalim(axis.transData).extents.tolist() == [1, 1, 3, 5]


def test_one_seed_has_no_shade_and_returns_are_called_so():
    pytest.importorskip("matplotlib")
    figure = plots.learning_curves([panel(line("ours", [1, 2, 3]), unit="return")])
    assert not figure.axes[0].collections
    assert "return" in figure.axes[0].get_ylabel()


def test_a_method_keeps_its_colour_across_panels():
    pytest.importorskip("matplotlib")
    first = panel(line("ours", [1, 2, 3]), line("theirs", [0, 0, 0]))
    figure = plots.learning_curves([first, panel(line("theirs", [0, 0, 0]))])
    left, right = figure.axes
    assert left.lines[-1].get_color() == right.lines[-1].get_color()
    assert left.lines[0].get_color() != right.lines[0].get_color()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["ours", "theirs"]


def test_many_methods_stay_distinguishable():
    looks = [plots._look(i) for i in range(len(plots.COLOURS) * len(plots.DASHES))]
    assert len(set(looks)) == len(looks)


def test_profile_has_a_step_for_each_method():
    pytest.importorskip("matplotlib")
    share = np.array([1.0, 0.5, 0.0])
    estimate = Estimate(share, share - 0.1, share + 0.1)
    figure = plots.performance_profiles(STEPS, {"a": estimate, "b": estimate}, "last")
    curves = figure.axes[0].lines
    assert [curve.get_ydata().tolist() for curve in curves] == [[1.0, 0.5, 0.0]] * 2


def test_saved_files_are_whole_small_and_reproducible(tmp_path):
    pytest.importorskip("matplotlib")
    figure = plots.learning_curves([panel(line("ours", [1, 2, 3], [3, 4, 5]))])
    png, pdf = plots.save(figure, tmp_path / "curves")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert png.stat().st_size < 200_000
    before = pdf.read_bytes()
    again = plots.learning_curves([panel(line("ours", [1, 2, 3], [3, 4, 5]))])
    plots.save(again, tmp_path / "curves")
    assert pdf.read_bytes() == before


def test_without_matplotlib_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pip install 'jdql\[plot\]'"):
        plots.learning_curves([panel(line("ours", [1, 2, 3]))])


def test_importing_the_report_imports_neither_matplotlib_nor_jax():
    code = (
        "import sys, experiments.report, jdql.report.selection; "
        "heavy = ('jax', 'matplotlib', 'scipy', 'pandas'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
