"""Write the tables of docs/todays-methods.md, and what they are made of.

    python -m scripts.todays_methods RUN NAME    writes docs/todays-methods/NAME/*.csv of a run with --hold-out
    python -m scripts.todays_methods             writes the tables anew, each between two comments with its NAME

A run counts where its learning rate is the best of its method's on held-out training data, as `finetune-bench report`
chooses; the intervals are the report's. Other than there, methods may have rates of their own, and a method's rates may
have been searched on some of its seeds only; see `chosen_of`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from finetune_bench.files import read_json
from finetune_bench.report import Options
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Data, Section, bare, section_of
from finetune_bench.reports.text import interval, points
from finetune_bench.reports.topics.choosing import Setting, best_settings, is_idle, those_that_learned
from finetune_bench.reports.topics.differences import reference_differences
from finetune_bench.stats.estimates import Estimate, geometric_mean_ratio
from finetune_bench.store.row import Row, Status
from finetune_bench.store.store import Store
from finetune_bench.task import HELD_OUT
from scripts.import_graph import ROOT

PAGE = ROOT / "docs" / "todays-methods.md"
STUDIES = ROOT / "docs" / "todays-methods"
RUNS, DIFFERENCES = "runs.csv", "differences.csv"  # of each study
OVERVIEW = "all studies"
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


def chosen_of(data: Data) -> tuple[Section, set[str]]:
    """Return the section of the runs of one task that count, each method at its learning rate, and their ids.

    A method's learning rate is chosen on the seeds that ran with all of its rates, by the report's rule. What the runs
    of a pair share is told by their hashes, whatever the machines that they ran on.
    """
    runs: dict[str, dict[Setting, dict[int, Row]]] = {}
    for row in data.rows:
        if row["status"] == Status.DONE:
            setting = (bare(row["method"]), float(row["recipe"]["lr"]))
            runs.setdefault(setting[0], {}).setdefault(setting, {})[row["seed"]] = row
    counted: list[Row] = []
    for of_method in runs.values():
        searched = set.intersection(*map(set, of_method.values()))
        by_rate = {setting: [of_method[setting][seed] for seed in searched] for setting in sorted(of_method)}
        held_out = {
            setting: sum(row["metrics"][HELD_OUT][row["metric"]] for row in by_rate[setting]) / len(searched)
            for setting in those_that_learned(by_rate)
        }
        counted += of_method[best_settings(held_out)[0]].values()
    return section_of(counted, {}, "", data.study), {row["id"] for row in counted}


def differences_of(section: Section) -> pd.DataFrame:
    """Return a line for each method of a section with one task: the report's difference to vanilla, in points."""
    found = {row.method: row.estimate for row in reference_differences(section) if row.column.task}
    return pd.DataFrame([{"method": method, **dataclasses.asdict(estimate)} for method, estimate in found.items()])


def runs_of(data: Data, chosen: set[str]) -> pd.DataFrame:
    """Return a line for each run on one task: its method, rate, seed, machine and scores, and whether it counts."""
    lines = []
    for row in data.rows:
        if row["status"] != Status.DONE:
            continue
        (split,) = (name for name in row["metrics"] if name != HELD_OUT)
        numbers = read_json(data.store.folder(row["id"]) / "analysis-calibration.json")["numbers"]
        is_classification = row["kind"] == "classification"
        lines.append(
            {
                "method": row["method"],
                "learning_rate": row["recipe"]["lr"],
                "seed": row["seed"],
                "device": row["device"],
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
    timed = chosen[chosen["device"] == chosen["device"].mode()[0]]  # the times of two machines have no mean
    seconds = timed.pivot(index="method", columns="seed", values="training_cpu_seconds").reindex(scores.index)
    ratios = {method: geometric_mean_ratio(seconds.loc[method], seconds.loc["vanilla"]) for method in scores.index}
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
            "—" if math.isnan(ratios[method]) else f"{ratios[method]:.2f}×",
        ]
        lines.append((scores.loc[method].mean(), f"| {' | '.join(cells)} |\n"))
    header = f"| method | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}\n"
    return header + "".join(line for _, line in sorted(lines, reverse=True))


def overview(of_studies: Mapping[str, pd.DataFrame]) -> str:
    """Return a table in Markdown of every method's difference in every study, the best mean place first.

    Differences of accuracy and of correlation have no common mean, so the order goes by the share of a study's methods,
    vanilla among them, that a method lies above.
    """
    places: dict[str, list[float]] = {}
    cells: dict[str, dict[str, str]] = {}
    for study, lines in of_studies.items():
        values = pd.concat([lines.set_index("method")["value"], pd.Series({"vanilla": 0.0})])
        for method, share in ((values.rank() - 1) / (len(values) - 1)).items():
            places.setdefault(str(method), []).append(share)
        for line in lines.to_dict("records"):
            value = points(line["value"], sign=True)
            is_apart = line["low"] > 0 or line["high"] < 0
            cells.setdefault(line["method"], {})[study] = f"**{value}**" if is_apart else value
    order = sorted(places, key=lambda method: (-sum(places[method]) / len(places[method]), method))
    cells["vanilla"] = dict.fromkeys(of_studies, "0")
    rows = [
        f"| `{method}` | " + " | ".join(cells[method].get(study, "—") for study in of_studies) + " |\n"
        for method in order
    ]
    header = "".join(f" {task} on {model} |" for model, task in (study.split("-") for study in of_studies))
    return f"| method |{header}\n|---|{'---:|' * len(of_studies)}\n" + "".join(rows)


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
        data = load(Store.open(parsed.run), Options(all_cells=True))
        section, chosen = chosen_of(data)
        folder = STUDIES / parsed.name
        folder.mkdir(exist_ok=True)
        for file, lines in ((RUNS, runs_of(data, chosen)), (DIFFERENCES, differences_of(section))):
            lines.to_csv(folder / file, index=False, float_format="%.6g", lineterminator="\n")
    page = PAGE.read_text("utf-8")
    page = with_table(page, OVERVIEW, overview({name: differences(name) for name in names()}))
    for name in names():
        page = with_table(page, name, table(runs(name), differences(name)))
    PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
