"""Gradients: their norm and how often they were clipped, as a report tells them."""

from __future__ import annotations

from pathlib import Path

from finetune_bench.reports.csv import Csv
from finetune_bench.reports.markdown import Markdown
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.topics.training_curves import gradients
from finetune_bench.store.store import Store
from tests.synthetic_store import make_row, put


def test_a_report_tells_the_norm_and_the_share_of_clipped_steps(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for seed, norm, share in ((1, 0.5, 0.25), (2, 0.9, 0.75), (3, None, 1.0)):
        for method in ("vanilla", "hype"):
            row = make_row(method, "rte", seed)
            if method == "hype":  # vanilla's rows are of an earlier version
                row["training"] |= {"grad_norm": norm, "clipped_share": share}
            put(store, row)
    (section,) = load(store).sections
    (gradient,) = gradients(section)
    assert (gradient.method, gradient.task, gradient.runs) == ("hype", "rte", 2)
    assert (gradient.norm, gradient.clipped_share) == (0.7, 0.5)
    (report, *_) = Markdown().write(store, tmp_path)
    assert "0.7 (50% clipped)" in report.read_text("utf-8")
    (path,) = [path for path in Csv().write(store, tmp_path) if path.name == "gradients.csv"]
    assert "0.7,0.5" in path.read_text("utf-8")
