"""Write the tables of docs/todays-methods.md, and what they are made of.

    python -m scripts.todays_methods RUN NAME    writes docs/todays-methods/NAME/*.csv of a run with --hold-out
    python -m scripts.todays_methods             writes the tables anew, each between two comments with its NAME

A run counts in the table where its learning rate is the one that `finetune-bench report` chooses for its method on
held-out training data. The intervals are the report's.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

import pandas as pd

from finetune_bench.files import read_json
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Data
from finetune_bench.reports.text import interval, points
from finetune_bench.reports.topics.choosing import is_idle
from finetune_bench.reports.topics.differences import reference_differences
from finetune_bench.reports.topics.search import Search, searches
from finetune_bench.stats.estimates import Estimate, geometric_mean_ratio
from finetune_bench.store.store import Store
from finetune_bench.task import HELD_OUT
from scripts.import_graph import ROOT

PAGE = ROOT / "docs" / "todays-methods.md"
STUDIES = ROOT / "docs" / "todays-methods"
RUNS, DIFFERENCES = "runs.csv", "differences.csv"  # of each study
END = "<!-- table: end -->\n"


def begin(name: str) -> str:
    """Return the comment that a study's table stands behind."""
    return f"<!-- table: {name} -->\n"


def names() -> list[str]:
    """Return the names of the studies, each its model and its task."""
    return sorted(folder.name for folder in STUDIES.iterdir())


def runs(name: str) -> pd.DataFrame:
    """Return the runs of a study."""
    return pd.read_csv(STUDIES / name / RUNS)


def differences(name: str) -> pd.DataFrame:
    """Return the differences to vanilla in a study."""
    return pd.read_csv(STUDIES / name / DIFFERENCES)


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
        numbers = read_json(data.store.folder(row["id"]) / "analysis-calibration.json")["numbers"]
        is_classification = row["kind"] == "classification"
        lines.append(
            {
                "method": row["method"],
                "learning_rate": row["recipe"]["lr"],
                "seed": row["seed"],
                "chosen": row["id"] in chosen,
                "learned_nothing": is_idle(row),
                "held_out_score": row["metrics"][HELD_OUT][row["metric"]],
                "score": row["metrics"][split][row["metric"]],
                "nll": numbers[f"{split}: NLL"] if is_classification else math.nan,
                "ece": numbers[f"{split}: ECE"] if is_classification else math.nan,
                "training_cpu_seconds": row["cost"]["train_cpu_seconds"],
            }
        )
    return pd.DataFrame(lines).sort_values(["method", "learning_rate", "seed"])


def table(runs: pd.DataFrame, differences: pd.DataFrame) -> str:
    """Return a study's table in Markdown, the best difference first; NLL and ECE where its task has classes."""
    chosen = runs[runs["chosen"]]
    gains = {line.pop("method"): Estimate(**line) for line in differences.to_dict("records")}
    scores = 100 * chosen.pivot(index="method", columns="seed", values="score")
    seconds = chosen.pivot(index="method", columns="seed", values="training_cpu_seconds")
    of_method = chosen.groupby("method")[["learning_rate", "nll", "ece"]].mean()
    has_classes = bool(chosen["nll"].notna().any())
    columns = ["difference to vanilla", "score", "learning rate", *(["NLL", "ECE"] if has_classes else []), "time"]
    lines: list[tuple[float, str]] = []
    for method in scores.index:
        honesty = [f"{of_method['nll'][method]:.2f}", points(100 * of_method["ece"][method])]
        cells = [
            f"`{method}`",
            "—" if method == "vanilla" else interval(gains[method], sign=True),
            points(scores.loc[method].mean()),
            f"{of_method['learning_rate'][method]:g}",
            *(honesty if has_classes else []),
            f"{geometric_mean_ratio(seconds.loc[method], seconds.loc['vanilla']):.2f}×",
        ]
        lines.append((scores.loc[method].mean(), f"| {' | '.join(cells)} |\n"))
    header = f"| method | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}\n"
    return header + "".join(line for _, line in sorted(lines, reverse=True))


def with_table(page: str, name: str, text: str) -> str:
    """Return a page with a study's table between its two comments."""
    before, mark, rest = page.partition(begin(name))
    if not mark:
        raise SystemExit(f"{PAGE}: found no line {begin(name)!r}; write one and, below it, {END!r}.")
    return before + mark + "\n" + text + "\n" + END + rest.partition(END)[2]


def main() -> None:
    """Write the tables, and before them the runs of a study where some are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a run folder")
    parser.add_argument("name", nargs="?", help="the study's model and task, as minilm-wordnet_topic")
    parsed = parser.parse_args()
    if parsed.run is not None:
        if parsed.name is None:
            parser.error("expected the study's NAME behind its run")
        data = load(Store.open(parsed.run))
        (search,) = searches(data)
        folder = STUDIES / parsed.name
        folder.mkdir(exist_ok=True)
        for file, lines in ((RUNS, runs_of(data, search)), (DIFFERENCES, differences_of(search))):
            lines.to_csv(folder / file, index=False, float_format="%.6g", lineterminator="\n")
    page = PAGE.read_text("utf-8")
    for name in names():
        page = with_table(page, name, table(runs(name), differences(name)))
    PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
