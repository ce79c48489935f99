"""The answer comes first: warnings, one sentence, and a word for every method, from the tests that exist."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_bench import registry
from finetune_bench.report import Options
from finetune_bench.reports.answer import answers, edge_of_rates, headline, warnings, word
from finetune_bench.reports.bars import SHAPES, draw_bar
from finetune_bench.reports.content import document
from finetune_bench.reports.document import Bar, Bullets, Heading, Table
from finetune_bench.reports.html import render as render_page
from finetune_bench.reports.markdown import render
from finetune_bench.reports.plots.style import COLOURS, MARKERS, marks_below, method_style, name_style
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Column, read_data
from finetune_bench.reports.topics.differences import Difference, differences
from finetune_bench.reports.topics.ranks import draw_ranks, places
from finetune_bench.reports.topics.scores import metric_range
from finetune_bench.reports.topics.synergy import draw_compatibility
from finetune_bench.reports.verdict import compared, verdict
from finetune_bench.stats import Estimate, Ranks
from finetune_bench.store.store import Store
from tests.reports.reading import of, only_section
from tests.synthetic_store import CONTROL, FIVE, THIRTEEN, fail, make_row, make_store, put

# --- words ------------------------------------------------------------------------------------------------------------


def difference(value: float, half: float, n: int = 5, detectable: float = 2.14) -> Difference:
    column = Column("rte", ("validation",), "accuracy", "rte accuracy")
    estimate = Estimate(value, value - half, value + half, n, 4, half / 2.776)
    return Difference("", column, "hype", "vanilla", "a", estimate, "paired t", detectable=detectable)


@pytest.mark.parametrize(
    ("value", "half", "margin", "expected"),
    [
        (3.0, 1.0, None, "helps"),
        (-3.0, 1.0, None, "hurts"),
        (0.2, 0.3, 1.0, "same within 1"),
        (0.2, 0.3, 0.25, "can't tell below 2.1"),
        (0.4, 0.2, 1.0, "helps, by less than 1"),
        (-0.4, 0.2, 1.5, "hurts, by less than 1.5"),
        (0.2, 3.0, 1.0, "can't tell below 2.1"),
        (0.0, 0.0, 1.0, "the same scores"),
        (0.5, 0.0, None, "can't tell: no spread"),
    ],
)
def test_a_word_is_that_of_the_tests(value: float, half: float, margin: float | None, expected: str) -> None:
    assert word(difference(value, half), margin) == expected


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_have_no_word(seeds: int) -> None:
    told = word(difference(9.0, 0.1, n=seeds), None)
    assert told == f"can't tell from {seeds} seed{'s' if seeds > 1 else ''}"


def test_every_method_has_its_answer_and_the_highest_stands_first(tmp_path: Path) -> None:
    section = only_section(make_store(tmp_path, noise=0.001))
    told = answers(section, None)
    values = [answer.difference.estimate.value for answer in told]
    assert values == sorted(values, reverse=True)
    assert {answer.difference.method for answer in told} == set(FIVE) - {"vanilla"}
    first = told[0]
    assert first.difference == of(differences(section, "vanilla"), "hype+rdrop", "")
    assert (first.word, first.cost.method) == ("helps", "hype+rdrop")


# --- the sentence and the warnings ------------------------------------------------------------------------------------


def same_as_control(row: dict[str, Any]) -> None:
    if row["method"] == "hype":
        row["metrics"] = make_row(CONTROL, row["task"], row["seed"])["metrics"]


def test_the_sentence_names_gain_interval_cost_and_the_control_that_scored_the_same(tmp_path: Path) -> None:
    section = only_section(make_store(tmp_path, change=same_as_control))
    first, second = headline(section)
    assert re.fullmatch(
        r"hype\+rdrop gained 3\.\d points \[[\d.]+, [\d.]+\] over vanilla on the mean over 2 tasks, at 2\.\d× its "
        r"time; rdrop gained too\.",
        first,
    )
    assert second == (
        f"The same scores as {CONTROL}, which differs from the baseline in dropout only: hype (6 of 6 runs)."
    )


def test_a_method_that_its_control_judges_the_other_way_round_is_told(tmp_path: Path) -> None:
    """Less dropout costs 20 points here, and HyPe wins 10 of them back: below vanilla, and above its control."""

    def lowered(row: dict[str, Any]) -> None:
        by = {CONTROL: 0.2, "hype": 0.1}.get(row["method"], 0.0)
        row["metrics"]["validation"][row["metric"]] -= by

    sentences = headline(only_section(make_store(tmp_path, noise=0.002, change=lowered)))
    assert re.fullmatch(
        rf"Against {re.escape(CONTROL)}, the same dropout alone, hype gained 1\d\.\d points \[[\d.]+, [\d.]+\]\.",
        sentences[-1],
    )


def test_a_method_that_differs_from_its_control_once_is_not_called_the_same(tmp_path: Path) -> None:
    def nearly(row: dict[str, Any]) -> None:
        same_as_control(row)
        if (row["method"], row["task"], row["seed"]) == ("hype", "rte", 2):
            row["metrics"] = {"validation": {"accuracy": 0.7}}

    assert len(headline(only_section(make_store(tmp_path, change=nearly)))) == 1


def test_a_loss_is_told_with_its_size(tmp_path: Path) -> None:
    (text,) = headline(only_section(make_store(tmp_path, methods=("vanilla", "mixout"), seeds=5, noise=0.001)))
    assert re.match(
        r"No method gained over vanilla .*; 1 of 1 lost: mixout lost 1\.\d points \[0\.\d, 1\.\d\] \(p ", text
    )


def test_noise_alone_is_no_gain(tmp_path: Path) -> None:
    (text,) = headline(only_section(make_store(tmp_path, methods=("vanilla", "noisytune"), noise=0.05)))
    assert text.startswith("No method can be told from vanilla on the mean over 2 tasks: noisytune came out highest, ")
    assert "could hide" in text


def test_without_runs_or_baseline_the_sentence_says_so(tmp_path: Path) -> None:
    failed = make_store(tmp_path / "a", change=lambda row: fail(row, "out of memory"))
    reason = "30 of 30 runs failed (out of memory)"
    assert headline(only_section(failed)) == [f"No run ended well, so there is nothing to compare: {reason}."]
    (text,) = headline(only_section(make_store(tmp_path / "b", methods=("hype", "rdrop"))))
    assert text.startswith("No difference can be given: vanilla")
    alone = only_section(make_store(tmp_path / "c", methods=("vanilla",), tasks=("rte",)))
    assert compared(alone, str) == "Run: vanilla alone, on rte, 3 seeds."


def test_runs_without_a_score_are_told_of(tmp_path: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        if (row["method"], row["seed"]) == ("hype", 2):
            row["metrics"] = {split: {row["metric"]: None} for split in row["metrics"]}

    text = render(read_data(make_store(tmp_path / "a", change=change)))
    assert "30 runs ended well (among them 2 without a score)." in text
    assert "Ended, but without a score that is a number, and so in no mean: hype on cola (seed 2); hype on rte" in text
    assert "without a score" not in render(read_data(make_store(tmp_path / "b", tasks=("mnli",))))


def collapse(row: dict[str, Any]) -> None:
    row["training"]["hardly_moved"] = True


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (lambda row: row["seed"] > 1, "20 of 30 runs learned nothing"),
        (lambda row: row["task"] == "cola", "On cola, 15 of 15 runs learned nothing"),
        (lambda row: row["method"] == "vanilla", "vanilla learned nothing in 6 of its 6 runs"),
        (lambda row: row["method"] == "hype", None),
    ],
)
def test_a_study_that_learned_nothing_says_so_first(tmp_path: Path, which: Any, expected: str | None) -> None:
    store = make_store(tmp_path, change=lambda row: collapse(row) if which(row) else None)
    told = warnings(only_section(store))
    assert [text for text in told if expected and text.startswith(expected)] == told
    assert len(told) == (expected is not None)
    text = render(read_data(store))
    if expected:
        assert text.splitlines()[2:4][0] == "> [!WARNING]"
        assert text.index("learned nothing") < text.index("over `vanilla`")


@pytest.mark.parametrize("seeds", [2, 5])
@pytest.mark.parametrize(
    ("method", "up", "is_told"), [("vanilla", 0.1, True), ("vanilla", 0.9, False), ("hype", 0.1, False)]
)
def test_a_baseline_no_better_than_one_answer_to_all_says_so(
    tmp_path: Path, seeds: int, method: str, up: float, is_told: bool
) -> None:
    def change(row: dict[str, Any]) -> None:
        if row["method"] == method and row["task"] == "cola":
            row["metrics"]["validation"]["matthews"] = up + 0.2 * (-1) ** row["seed"]

    told = [text for text in warnings(only_section(make_store(tmp_path, seeds=seeds, change=change))) if "cola" in text]
    assert len(told) == (is_told and seeds == 5)
    if told:
        assert told[0].startswith("On cola, vanilla scores 6.0 [−21.2, 33.2], and one answer to all examples 0.0:")


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_few_seeds_are_a_warning_and_have_no_interval(tmp_path: Path, seeds: int) -> None:
    store = make_store(tmp_path, seeds=seeds)
    assert len(warnings(only_section(store))) == (seeds < 3)
    (answer,) = [block for block in document(read_data(store)) if getattr(block, "name", "") == "answer"]
    assert isinstance(answer, Table)
    assert [
        ("[" in row[1].text, math.isfinite(row[1].bar.low)) for row in answer.rows if row[1].bar
    ] == [  # no interval
        (seeds > 2, seeds > 2)
    ] * 4
    assert len(answer.footer) == (seeds > 2)


def test_the_best_learning_rate_at_the_edge_is_a_warning(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.cells.mkdir(parents=True)
    for lr, gain in ((1e-5, 0.0), (2e-5, 0.1), (4e-5, 0.2)):
        for method in FIVE[:2]:
            row = make_row(method, "rte", 1)
            row["id"] = f"{round(lr * 1e5)}{row['id'][1:]}"
            row["recipe"]["lr"] = lr
            row["metrics"]["validation"]["accuracy"] += gain
            put(store, row)
    data = read_data(store)
    (text,) = edge_of_rates(data.sections)
    assert text.startswith("The baseline scores best at the highest learning rate tried, 4e-05: a higher one ")
    assert edge_of_rates(data.sections[:1]) == []
    best_in_the_middle = [data.sections[2], data.sections[0], dataclasses.replace(data.sections[1])]
    best_in_the_middle[2].setting["lr"] = 1e-3
    assert edge_of_rates(best_in_the_middle) == []


# --- the order of the report ------------------------------------------------------------------------------------------


def test_the_answer_stands_before_everything_and_settings_at_the_end(tmp_path: Path) -> None:
    blocks = document(load(make_store(tmp_path, methods=THIRTEEN)))
    kinds = [getattr(block, "role", None) or getattr(block, "name", None) or type(block).__name__ for block in blocks]
    assert kinds[:5] == ["Heading", "headline", "aside", "answer", "Bullets"]
    assert isinstance(blocks[5], Heading)
    titles = [block.text for block in blocks if isinstance(block, Heading) and block.level == 2]
    assert titles[:5] == ["In short", "Scores", "Differences to the baseline", "Cost", "Compatibility"]
    assert titles[-3:] == ["Runs that need a look", "Settings and environment", "What the numbers are"]


def test_explanations_are_a_click_away_and_findings_are_not(tmp_path: Path) -> None:
    data = load(make_store(tmp_path, tasks=("rte", "cola")))
    page, text = render_page(document(data), data.rows), render(data)
    notes = [block for block in document(data) if isinstance(block, Bullets) and not block.findings]
    assert page.count('<details class="notes">') == len(notes) == text.count("<details><summary>How to read this")
    assert "averages different metrics" in re.sub("<details.*?</details>", "", page, flags=re.DOTALL)


def test_several_sections_have_their_answers_before_the_first_table_of_scores(tmp_path: Path) -> None:
    store = make_store(tmp_path, methods=FIVE[:2], tasks=["rte"])
    for seed in (1, 2, 3):
        for method in FIVE[:2]:
            row = make_row(method, "rte", seed)
            row.update(model="roberta-base", id=row["id"][::-1])
            put(store, row)
    names = [getattr(block, "name", "") for block in document(load(store))]
    assert [name for name in names if name][:4] == ["models", "answer", "answer", "scores"]


def test_a_margin_reaches_the_words(tmp_path: Path) -> None:
    store = make_store(tmp_path, methods=("vanilla", "noisytune"), noise=0.0005)
    text = render(load(store, Options(margin=5)))
    assert re.search(r"same within 5|by less than 5", text)


# --- bars and marks ---------------------------------------------------------------------------------------------------


def test_a_bar_that_goes_on_has_an_arrow_and_no_style_attribute() -> None:
    drawn = draw_bar(Bar("#0072B2", "o", 1.0, -9.0, 2.0, 0.5, -2.0, 3.0))
    assert drawn.count('class="mark"') == 2  # the mark and the arrow
    assert 'x1="0.00%" x2="80.00%"' in drawn
    assert "style=" not in drawn
    assert draw_bar(Bar("#0072B2", "o", 1.0, math.nan, math.nan, math.nan, -2.0, 3.0)).count("<line") == 1
    assert "<text" in draw_bar(Bar("", "", math.nan, math.nan, math.nan, 0.5, -2.0, 3.0))


def test_a_methods_mark_depends_on_its_name_and_not_on_its_company(tmp_path: Path) -> None:
    few = only_section(make_store(tmp_path / "few", methods=("vanilla", "rdrop", "mixout"), tasks=["rte"]))
    many = only_section(make_store(tmp_path / "many", methods=THIRTEEN, tasks=["rte"]))
    for method in ("vanilla", "rdrop", "mixout"):
        assert method_style(few, method) == method_style(many, method)
    assert len({method_style(many, method)[:2] for method in many.methods}) == len(many.methods)


def test_marks_that_lie_on_each_other_are_counted() -> None:
    assert marks_below([(1.0, 50.0), (2.0, 60.0), (1.01, 50.1), (1.0, 50.0)]) == [0, 0, 1, 2]


def test_the_built_in_methods_all_have_different_marks() -> None:
    names = [name for name in registry.names("methods") if name != "vanilla"]
    assert len(names) > 20
    assert len({name_style(name) for name in names}) == len(names)
    assert all(colour < len(COLOURS) and marker < len(MARKERS) for colour, marker in map(name_style, names))
    assert set(MARKERS) <= set(SHAPES)


# --- places -----------------------------------------------------------------------------------------------------------


def test_places_are_what_the_critical_difference_leaves_open() -> None:
    ranks = Ranks(mean=np.array([1.0, 1.5, 3.6, 4.0]), p=0.01, critical_difference=2.2, n=6)
    assert places(ranks) == [(1, 2), (1, 3), (2, 4), (3, 4)]


@pytest.mark.parametrize("tasks", [3, 4])
def test_a_critical_difference_is_drawn_from_four_tasks_on(tmp_path: Path, tasks: int) -> None:
    section = only_section(make_store(tmp_path, tasks=("rte", "cola", "mrpc", "stsb")[:tasks]))
    assert (draw_ranks(section) is not None) == (tasks == 4)


def test_a_heat_map_needs_a_map(tmp_path: Path) -> None:
    row = ("vanilla", "hype", "rdrop", "r3f", "hype+rdrop", "hype+r3f")
    assert draw_compatibility(only_section(make_store(tmp_path / "row", methods=row, tasks=["rte"]))) is None
    square = (*row, "mixout", "mixout+rdrop", "mixout+r3f")
    assert draw_compatibility(only_section(make_store(tmp_path / "map", methods=square, tasks=["rte"]))) is not None


# --- few seeds, and intervals that a metric can't have ----------------------------------------------------------------


def test_below_three_seeds_there_are_the_seeds_and_no_interval_anywhere(tmp_path: Path) -> None:
    store = make_store(tmp_path, seeds=2)
    section = only_section(store)
    values = [f"{100 * make_row('rdrop', 'rte', seed)['metrics']['validation']['accuracy']:.1f}" for seed in (1, 2)]
    text = render(read_data(store))
    assert f"({values[0]} and {values[1]}) n=2" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    # The brackets of costs hold the smallest and largest ratio, and are no intervals.
    assert [row for row in rows if re.search(r"\d \[", row) and " + 1 |" not in row] == []
    assert all(not word(row, None).startswith(("helps", "hurts")) for row in differences(section, "vanilla"))
    assert "Clearly" not in " ".join(verdict(section))


def test_an_interval_ends_where_the_metric_does_and_is_marked(tmp_path: Path) -> None:
    def lift(row: dict[str, Any]) -> None:
        row["metrics"] = {"validation": {row["metric"]: 0.96 + 0.013 * row["seed"]}}

    text = render(read_data(make_store(tmp_path, tasks=("rte", "cola"), change=lift)))
    assert r"98.6 [95.4, 100.0\*] n=3" in text
    assert "101." not in text.partition("## Differences")[0]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("accuracy", (0, 100)),
        ("f1(spam)", (0, 100)),
        ("recall_macro", (0, 100)),
        ("matthews", (-100, 100)),
        ("neg_rmse", (-math.inf, 0)),
        ("a plugin's", (-math.inf, math.inf)),
    ],
)
def test_a_metric_has_its_range(metric: str, expected: tuple[float, float]) -> None:
    assert metric_range(metric) == expected


def test_the_bootstrap_of_few_seeds_is_refused_before_it_reads_a_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load(make_store(tmp_path, seeds=4), Options(bootstrap=True))
    monkeypatch.setattr(data.store, "arrays", lambda *_: pytest.fail("a prediction was read"))
    assert "No multi-bootstrap: no method has 5 seeds" in render(data)
