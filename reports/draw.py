"""Draw the plots of all sections into files, which are the same to the last byte for the same rows.

Figures are made without pyplot, so nothing global is touched.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import matplotlib

from finetune_bench.files import make_folder, replacing
from finetune_bench.reports.document import Plot
from finetune_bench.reports.plots.layout import lay_out
from finetune_bench.reports.plots.style import SETTINGS
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import Data
from finetune_bench.reports.section import drawings

_NO_DATE: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


@cached
def draw(data: Data, folder: Path, ending: str = "svg") -> tuple[Plot, ...]:
    """Draw whatever the rows allow, and return the plots that were drawn.

    Args:
        data: What the report is made of.
        folder: Where the files go; made where it is missing.
        ending: "svg", or "pdf" for LaTeX.
    """
    make_folder(folder)
    plots = []
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # A box is drawn in the place of a character that the font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        for number, section in enumerate(data.sections):
            for drawing in drawings(data, section):
                figure = drawing.draw()
                if figure is None:
                    continue
                name = drawing.kind if len(data.sections) == 1 else f"{drawing.kind}-{number + 1}"
                alt = f"{drawing.alt}, {section.title}" if section.title else drawing.alt
                file = folder / f"{name}.{ending}"
                lay_out(figure)
                with replacing(file) as temporary:
                    figure.savefig(temporary, metadata=_NO_DATE[ending])
                plots.append(Plot(drawing.kind, number, file, f"{folder.name}/{file.name}", alt))
    return tuple(plots)
