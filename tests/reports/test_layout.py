"""The panels of a plot: all alike, and no text lies on another."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from finetune_bench.reports.plots.layout import lay_out
from finetune_bench.reports.plots.style import SETTINGS, caption, legend, small_multiples
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.section import drawings
from tests.synthetic_store import FIVE, make_store


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
    elif below == "caption, and a legend above":
        figure.legend(handles=[Line2D([], [], label=name) for name in names], loc="outside upper left")
        caption(figure, "what the marks mean")
    elif below == "caption":
        caption(figure, *["what the marks mean, in many words"] * 6)
    with matplotlib.rc_context(SETTINGS):
        lay_out(figure)
    return figure


@pytest.mark.parametrize("below", ["legend", "caption", "caption, and a legend above", ""])
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


@pytest.mark.slow
def test_the_panels_of_a_report_lie_within_their_plot_and_off_its_legend(tmp_path: Path) -> None:
    store = make_store(tmp_path / "run", methods=FIVE, tasks=("rte", "mnli", "stsb"), seeds=3)
    data = load(store)
    with matplotlib.rc_context(SETTINGS):
        figures = {drawing.kind: drawing.draw() for drawing in drawings(data, data.sections[0])}
        for kind, figure in figures.items():
            if figure is None:
                continue
            lay_out(figure)
            renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
            outer = [artist.get_window_extent(renderer) for artist in (*figure.texts, *figure.legends)]
            for axes in figure.axes:
                box = axes.get_tightbbox(renderer, for_layout_only=True)
                assert box.x0 > -1 and box.x1 < figure.bbox.x1 + 1, kind
                assert box.y0 > -1 and box.y1 < figure.bbox.y1 + 1, kind
                assert not any(box.overlaps(other) for other in outer), kind
    assert len(figures) > 8
