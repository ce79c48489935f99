"""The panels of a plot: all alike, and no text lies on another."""

from __future__ import annotations

import itertools
from typing import Any

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from finetune_bench.reports.plots.layout import lay_out
from finetune_bench.reports.plots.style import SETTINGS, caption, legend, small_multiples


def figure_of(names: list[str], *, below: str) -> Figure:
    figure, panels = small_multiples(5, 3, 3.0, 2.0)
    for index, axes in enumerate(panels):
        axes.plot([0, 1], [0, 10 ** (index + 1)])
        axes.set_title("a title")
        axes.set_xlabel("step" if index % 2 else "")
        if index % 3 == 0:
            axes.set_yticks(range(len(names)), names)
    if below == "legend":
        legend(figure, [Line2D([], [], label=name) for name in names], "what it shows")
    elif below == "caption":
        caption(figure, *["what the marks mean, in many words"] * 6)
    with matplotlib.rc_context(SETTINGS):
        lay_out(figure)
    return figure


@pytest.mark.parametrize("below", ["legend", "caption", ""])
@pytest.mark.parametrize("names", [["a", "b"], ["a method of a long name", "short"]])
def test_panels_are_alike_and_apart(names: list[str], below: str) -> None:
    figure = figure_of(names, below=below)
    renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    sizes = {(round(axes.bbox.width), round(axes.bbox.height)) for axes in figure.axes}
    assert len(sizes) == 1
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    boxes += [artist.get_window_extent(renderer) for artist in (*figure.texts, *figure.legends)]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


def test_a_figure_without_room_for_its_texts_stays_as_it_was() -> None:
    figure, panels = small_multiples(2, 2, 0.3, 0.3)
    before = [axes.get_position().bounds for axes in panels]
    panels[0].set_yticks([0], ["a name that is much longer than the figure is wide"])
    lay_out(figure)
    assert [axes.get_position().bounds for axes in panels] == before
