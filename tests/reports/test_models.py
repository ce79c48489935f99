"""A report of several models says first what holds on all of them, and how each of them was trained."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from finetune_bench.reports.document import Table
from finetune_bench.reports.markdown import render
from finetune_bench.reports.models import model_blocks
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Data
from finetune_bench.store.store import Store
from tests.synthetic_store import make_row, put

# By model and method: points that it scores above vanilla, on the whole.
GAINS = {
    "small": {"vanilla": 0, "mixout": -20, "hype": 20, "rdrop": 20},
    "large": {"vanilla": 0, "mixout": -20, "hype": 0, "rdrop": -20, "r3f": 20},
}


def data_of(folder: Path, tasks: dict[str, tuple[str, ...]], gains: dict[str, dict[str, int]] = GAINS) -> Data:
    """Load a store of three seeds, which trained each model on its tasks, with a rate of its own."""
    store = Store(folder)
    for rate, model in enumerate(tasks, 1):
        for task in tasks[model]:
            for method, gain in gains[model].items():
                for seed in (1, 2, 3):
                    row = make_row(method, task, seed)
                    level = make_row("vanilla", task, seed)["metrics"]
                    metrics = {
                        split: {metric: value + gain / 100 + 0.001 * seed * bool(gain) for metric, value in of.items()}
                        for split, of in level.items()
                    }
                    identity = hashlib.sha256(repr((method, task, seed, model)).encode()).hexdigest()[:16]
                    recipe = row["recipe"] | {"lr": rate / 1e4}
                    put(store, row | {"id": identity, "model": model, "metrics": metrics, "recipe": recipe})
    return load(store)


def test_what_holds_on_all_models_comes_first(tmp_path: Path) -> None:
    data = data_of(tmp_path, dict.fromkeys(GAINS, ("rte", "cola")))
    table = model_blocks(data.sections, None)[2]
    text = render(data)
    assert (
        "On both models `mixout` hurts. On some only: `r3f` helps on `large`; `rdrop` and `hype` help on `small`; "
        "`rdrop` hurts on `large`."
    ) in text
    assert isinstance(table, Table)
    assert re.findall(r"^\| `(\w+)` +\| (\S+) .*\| (\S+) ", text, re.MULTILINE)[:4] == [
        ("r3f", "**+20.2", "—"),
        ("hype", "0.0", "**+20.2"),
        ("rdrop", "**−19.8", "**+20.2"),
        ("mixout", "**−19.8", "**−19.8"),
    ]
    assert all(entry.cells for row in table.rows for entry in row[1:] if entry.text != "—")
    assert text.index("**Both models**") < text.index("**large**") < text.index("## In short")


def test_every_model_has_its_setting_in_a_line_of_its_own(tmp_path: Path) -> None:
    text = render(data_of(tmp_path, dict.fromkeys(GAINS, ("rte",))))
    (shared,) = (line for line in text.splitlines() if line.startswith("| setting |"))
    assert "batch_size" in shared
    assert "lr " not in shared
    assert "| setting of `small` | lr 0.0001 |" in text
    assert "| setting of `large` | lr 0.0002 |" in text


def test_nothing_is_said_of_all_where_nothing_is_compared(tmp_path: Path) -> None:
    other_tasks = data_of(tmp_path / "tasks", {"small": ("rte",), "large": ("cola",)})
    alone = data_of(tmp_path / "alone", {"small": ("rte",)})
    no_baseline = data_of(tmp_path / "baseline", dict.fromkeys(GAINS, ("rte",)), {m: {"hype": 0} for m in GAINS})
    assert [model_blocks(data.sections, None) for data in (other_tasks, alone, no_baseline)] == [[], [], []]
