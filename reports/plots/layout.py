"""Place the panels of a figure from the sizes of its texts, measured once; a general solver takes them four times."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure

# Points around every panel with its texts, and around what stands below all panels.
_ROOM = 3.0


def lay_out(figure: Figure) -> None:
    """Place panels so that all are alike and no text lies on another; a layout engine goes first, where there is one.

    Args:
        figure: Its panels are in one grid; texts of the figure stand below it, legends below or above.
    """
    engine = figure.get_layout_engine()
    _forgo_empty_labels(figure)
    if engine is not None:
        # Once and for all: `savefig` would draw the whole figure once more to find it.
        engine.execute(figure)
        figure.set_layout_engine(None)
        return
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    room = _ROOM * figure.dpi / 72
    bottom, top = _reserved(figure, renderer, room)
    rows, columns = _grid(figure)
    left, right = [room] * columns, [room] * columns
    above, below = [room] * rows, [room] * rows
    for axes in figure.axes:
        row, column = _cell(axes)
        inner, outer = axes.get_window_extent(renderer), axes.get_tightbbox(renderer, for_layout_only=True)
        if outer is None:
            continue
        left[column] = max(left[column], inner.x0 - outer.x0 + room)
        right[column] = max(right[column], outer.x1 - inner.x1 + room)
        above[row] = max(above[row], outer.y1 - inner.y1 + room)
        below[row] = max(below[row], inner.y0 - outer.y0 + room)
    width = (figure.bbox.width - sum(left) - sum(right)) / columns
    height = (figure.bbox.height - bottom - top - sum(above) - sum(below)) / rows
    # A figure that has no room for its texts keeps what it has.
    if min(width, height) <= 0:
        return
    for axes in figure.axes:
        row, column = _cell(axes)
        x = sum(left[: column + 1]) + sum(right[:column]) + column * width
        y = figure.bbox.height - top - sum(above[: row + 1]) - sum(below[:row]) - (row + 1) * height
        whole = figure.bbox
        axes.set_position((x / whole.width, y / whole.height, width / whole.width, height / whole.height))


def _forgo_empty_labels(figure: Figure) -> None:
    """Give axes without a label a fixed place for it: else all texts of the axis are measured again to find one."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if not axis.get_label_text():
                axis.set_label_coords(0, 0)


def _reserved(figure: Figure, renderer: RendererAgg, room: float) -> tuple[float, float]:
    """Put the figure's texts at its lower edge, and return what they and its legends take there, and at the upper."""
    bottom = top = 0.0
    for text in figure.texts:
        text.set_y(room / figure.bbox.height)
    for artist in (*figure.texts, *figure.legends):
        box = artist.get_window_extent(renderer)
        if box.y0 <= figure.bbox.height - box.y1:
            bottom = max(bottom, box.y1 + room)
        else:
            top = max(top, figure.bbox.height - box.y0 + room)
    return bottom, top


def _grid(figure: Figure) -> tuple[int, int]:
    """Return the rows and columns of a figure's grid."""
    cells = [_cell(axes) for axes in figure.axes]
    return max(row for row, _ in cells) + 1, max(column for _, column in cells) + 1


def _cell(axes: Axes) -> tuple[int, int]:
    """Return the row and the column of a panel."""
    place = axes.get_subplotspec()
    assert place is not None  # panels are made by `add_subplot`
    return place.rowspan.start, place.colspan.start
