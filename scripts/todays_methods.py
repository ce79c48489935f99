"""Write the table of docs/todays-methods.md, and what it is made of.

    python -m scripts.todays_methods RUN    writes docs/todays-methods/*.csv of a run with --hold-out, and the table
    python -m scripts.todays_methods        writes the table anew

A run counts in the table where its learning rate is the one that `finetune-bench report` chooses for its method on
held-out training data. The intervals are the report's.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pandas as pd

from finetune_bench.files import read_json
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Data
from finetune_bench.reports.text import interval, points
from finetune_bench.reports.topics.differences import reference_differences
from finetune_bench.reports.topics.search import Search, searches
from finetune_bench.stats.estimates import Estimate, geometric_mean_ratio
from finetune_bench.store.store import Store
from finetune_bench.task import HELD_OUT
from scripts.import_graph import ROOT

PAGE = ROOT / "docs" / "todays-methods.md"
RUNS = ROOT / "docs" / "todays-methods" / "runs.csv"
DIFFERENCES = RUNS.with_name("differences.csv")
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
HEADER = (
    "| method | difference to vanilla | accuracy | learning rate | NLL | ECE | time |\n"
    "|---|---:|---:|---:|---:|---:|---:|\n"
)


def differences_of(search: Search) -> pd.DataFrame:
    """Return a line for each method of a search on one task: the report's difference to vanilla, in points."""
    assert search.section is not None
    found = {row.method: row.estimate for row in reference_differences(search.section) if row.column.task}
    return pd.DataFrame([{"method": method, **dataclasses.asdict(estimate)} for method, estimate in found.items()])


def runs_of(data: Data, search: Search) -> pd.DataFrame:
    """Return a line for each run of a search on one task: its method, rate and seed, scores, and whether it counts."""
    chosen = {cell for choice in search.choices for cell in choice.cells}
    lines = []
    for row in data.rows:
        if row["status"] != "done":
            continue
        (split,) = (name for name in row["metrics"] if name != HELD_OUT)
        calibration = read_json(data.store.folder(row["id"]) / "analysis-calibration.json")["numbers"]
        lines.append(
            {
                "method": row["method"],
                "learning_rate": row["recipe"]["lr"],
                "seed": row["seed"],
                "chosen": row["id"] in chosen,
                "held_out_accuracy": row["metrics"][HELD_OUT]["accuracy"],
                "accuracy": row["metrics"][split]["accuracy"],
                "nll": calibration[f"{split}: NLL"],
                "ece": calibration[f"{split}: ECE"],
                "training_cpu_seconds": row["cost"]["train_cpu_seconds"],
            }
        )
    return pd.DataFrame(lines).sort_values(["method", "learning_rate", "seed"])


def table(runs: pd.DataFrame, differences: pd.DataFrame) -> str:
    """Return the table in Markdown, the best difference first."""
    chosen = runs[runs["chosen"]]
    gains = {line.pop("method"): Estimate(**line) for line in differences.to_dict("records")}
    scores = 100 * chosen.pivot(index="method", columns="seed", values="accuracy")
    seconds = chosen.pivot(index="method", columns="seed", values="training_cpu_seconds")
    of_method = chosen.groupby("method")[["learning_rate", "nll", "ece"]].mean()
    lines: list[tuple[float, str]] = []
    for method in scores.index:
        cells = [
            f"`{method}`",
            "—" if method == "vanilla" else interval(gains[method], sign=True),
            points(scores.loc[method].mean()),
            f"{of_method['learning_rate'][method]:g}",
            f"{of_method['nll'][method]:.2f}",
            points(100 * of_method["ece"][method]),
            f"{geometric_mean_ratio(seconds.loc[method], seconds.loc['vanilla']):.2f}×",
        ]
        lines.append((scores.loc[method].mean(), f"| {' | '.join(cells)} |\n"))
    return HEADER + "".join(line for _, line in sorted(lines, reverse=True))


def with_table(page: str, text: str) -> str:
    """Return a page with a table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + "\n" + text + "\n" + END + rest.partition(END)[2]


def main() -> None:
    """Write the table, and before it the runs where some are given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="a run folder")
    if (run := parser.parse_args().run) is not None:
        RUNS.parent.mkdir(exist_ok=True)
        data = load(Store.open(run))
        (search,) = searches(data)
        for path, lines in ((RUNS, runs_of(data, search)), (DIFFERENCES, differences_of(search))):
            lines.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    PAGE.write_text(with_table(PAGE.read_text("utf-8"), table(pd.read_csv(RUNS), pd.read_csv(DIFFERENCES))), "utf-8")


if __name__ == "__main__":
    main()
