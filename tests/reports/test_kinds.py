"""Which rows a report covers, and which of them are never taken together though they have the same names."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_bench import cli
from finetune_bench.cli import report as report_commands
from finetune_bench.cli import result_cache, train
from finetune_bench.report import Options
from finetune_bench.reports.dose_files import write_dose
from finetune_bench.reports.markdown import render
from finetune_bench.reports.power import power_lines
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.runs import compare
from finetune_bench.reports.terminal import summary
from finetune_bench.reports.topics.dose import DoseStudy
from finetune_bench.store.merge import merge
from finetune_bench.store.store import Store
from tests.synthetic_store import fail, make_row, put

OLD, NEW = "2026-01-01T00:00:00+00:00", "2026-02-02T00:00:00+00:00"


def row(method: str = "vanilla", seed: int = 1, task: str = "rte", **changes: Any) -> dict[str, Any]:
    made = make_row(method, task, seed) | changes
    return made | {"id": hashlib.sha256(f"{made['id']} {changes}".encode()).hexdigest()[:16]}


def store_of(folder: Path, *rows: dict[str, Any]) -> Store:
    store = Store(folder)
    for made in rows:
        put(store, made)
    return store


def runs(data: Data) -> dict[tuple[str, str, str], list[int]]:
    """Return the seeds by model, task and method, of all sections."""
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for section in data.sections:
        for (method, task, seed), made in section.runs.items():
            seeds.setdefault((made["model"], task, method), []).append(seed)
    return {key: sorted(values) for key, values in seeds.items()}


def only(data: Data) -> Section:
    (section,) = data.sections
    return section


# --- the cells of one command -----------------------------------------------------------------------------------------

HYPE = [row(method, seed) for method in ("vanilla", "hype") for seed in (1, 2, 3)]
RDROP = [row("rdrop", seed, task) for seed in (1, 4) for task in ("rte", "cola")]


def ids(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [made["id"] for made in rows]


@pytest.fixture
def shared(tmp_path: Path) -> Store:
    """The folder of two commands, of which the last compared HyPe with vanilla."""
    store = store_of(tmp_path / "shared", *HYPE, *RDROP)
    store.write_study({"cells": ids(HYPE)})
    return store


def test_a_report_covers_the_cells_of_the_last_command(shared: Store, tmp_path: Path) -> None:
    data = load(shared)
    assert (only(data).methods, only(data).tasks, only(data).seeds) == (("vanilla", "hype"), ("rte",), (1, 2, 3))
    alone = store_of(tmp_path / "alone", *HYPE)
    page, expected = render(data).splitlines(), render(load(alone)).splitlines()
    (sentence,) = [line for line in page if line not in expected]
    assert "The folder holds 4 runs more, of other commands" in sentence
    assert "methods rdrop; tasks cola and rte; models bert-base-cased; seeds 1 and 4" in sentence
    assert "'finetune-bench report RUN --all' covers them too" in " ".join(summary(shared).split())


def test_all_cells_are_covered_where_that_is_asked_for(shared: Store) -> None:
    data = load(shared, Options(all_cells=True))
    assert set(only(data).methods) == {"vanilla", "hype", "rdrop"}
    assert data.notes == []


@pytest.mark.parametrize("cells", [None, [], "abc", [1, None], {"a": 1}, 7])
def test_a_study_that_names_no_cells_covers_all(shared: Store, cells: Any) -> None:
    shared.write_study({} if cells is None else {"cells": cells})
    assert set(only(load(shared)).methods) == {"vanilla", "hype", "rdrop"}


def test_a_command_whose_cells_left_no_row_has_an_empty_report_that_tells_of_the_others(shared: Store) -> None:
    shared.write_study({"cells": ["0" * 16]})
    for text in (render(load(shared)), " ".join(summary(shared).split())):
        assert "Nothing has been run yet." in text
        assert "The folder holds 10 runs more" in text


def test_report_and_its_check_cover_the_same(shared: Store, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["report", str(shared.root), "--format", "csv"]
    assert cli.main(words) == 0
    assert "The folder holds 4 runs more" in capsys.readouterr().out
    assert cli.main([*words, "--check"]) == 0
    assert cli.main([*words, "--check", "--all"]) == 1
    assert cli.main([*words, "--all"]) == 0
    assert "holds" not in capsys.readouterr().out.splitlines()[-1]
    assert cli.main([*words, "--check", "--all"]) == 0
    assert cli.main([*words, "--check"]) == 1
    assert cli.main([*words[:2], "--check"]) == 0  # as it was written
    assert "Checked as it was written: csv, all_cells True." in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"formats": 1}',
        '{"formats": ["pdf"]}',
        '{"formats": ["csv"], "margin": "x"}',
        '{"formats": ["csv"], "baseline": []}',
        '{"formats": ["csv"], "cells": []}',
        '{"formats": ["csv"], "weather": 1}',
    ],
)
def test_options_of_junk_are_not_taken_up(content: str, shared: Store, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["report", str(shared.root)]
    assert cli.main([*words, "--format", "csv"]) == 0
    (shared.root / "report" / "options.json").write_text(content, "utf-8")
    assert cli.main([*words, "--format", "csv", "--check"]) == 0
    assert cli.main([*words, "--check"]) == 1  # of the usual formats, two are missing
    assert "report.md: missing" in capsys.readouterr().out


def test_a_run_reports_its_own_cells_though_another_command_was_started_meanwhile(
    shared: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = SimpleNamespace(
        store=shared, cells=[SimpleNamespace(id=made["id"]) for made in RDROP], study=SimpleNamespace(save_model=False)
    )
    tally = SimpleNamespace(done=0, cached=0, failed=0, failed_before=0)
    monkeypatch.setattr(train, "_train", lambda study: (plan, tally))
    monkeypatch.setattr(train, "FORMATS", "csv")
    monkeypatch.setattr(result_cache, "look_up", lambda study: None)
    assert train.run_command(Namespace()) == 0
    shown = capsys.readouterr().out
    assert "rdrop" in shown
    assert "The folder holds 6 runs more" in shown
    assert "\nhype " not in shown


def test_a_dose_counts_its_own_cells(shared: Store, tmp_path: Path) -> None:
    study = DoseStudy("hype", "eps", {1e-5: "hype"}, 1e-5, "rte", {1e-5: 0.1}, {1e-5: 0.1}, (0.1, 0.1))
    mine = Options(cells=(HYPE[0]["id"], HYPE[3]["id"]))
    text, _ = write_dose(shared, study, tmp_path / "dose", mine)
    assert "n=1" in text
    assert "n=3" in write_dose(shared, study, tmp_path / "dose")[0]


def test_power_and_compare_cover_what_the_report_does(
    shared: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {line.method for line in power_lines(shared, 1.0, 0.8)} == {"hype"}
    assert report_commands.power_command(Namespace(run=shared.root, difference=1.0, power=0.8, json=False)) == 0
    assert "The folder holds 4 runs more" in capsys.readouterr().err
    other = store_of(tmp_path / "other", *HYPE, *RDROP)
    compared = compare(shared, other)
    assert {line.method for line in compared.lines} == {"vanilla", "hype"}
    assert f"In '{other.root}' only: 4 finished cells." in compared.notes
    assert any(note.startswith(f"'{shared.root}': This covers the runs of one command.") for note in compared.notes)


def test_merged_stores_cover_what_both_covered(shared: Store, tmp_path: Path) -> None:
    more = [row("mixout", seed) for seed in (1, 2, 3)]
    second = store_of(tmp_path / "second", *more, row("r3f"))
    second.write_study({"cells": ids(more)})
    merge(tmp_path / "merged", [shared.root, second.root])
    assert only(load(Store(tmp_path / "merged"))).methods == ("vanilla", "hype", "mixout")
    without = store_of(tmp_path / "without", row("noisytune"))  # of an earlier version: all of its cells count
    merge(tmp_path / "merged", [without.root])
    assert set(only(load(Store(tmp_path / "merged"))).methods) == {"vanilla", "hype", "mixout", "noisytune"}
    merge(without.root, [second.root])
    assert set(only(load(without)).methods) == {"mixout", "noisytune"}


# --- rows of one name -------------------------------------------------------------------------------------------------


def test_rows_of_edited_data_are_apart(tmp_path: Path) -> None:
    before = [row(method, seed, data="1111111111111111") for method in ("vanilla", "hype") for seed in (1, 2)]
    after = [row(method, 3, data="2222222222222222", finished=NEW) for method in ("vanilla", "hype")]
    store = store_of(tmp_path, *before, *after, row("vanilla", 1, "cola"))
    data = load(store)
    assert runs(data) == {
        ("bert-base-cased", "rte [111111]", "vanilla"): [1, 2],
        ("bert-base-cased", "rte [111111]", "hype"): [1, 2],
        ("bert-base-cased", "rte [222222]", "vanilla"): [3],
        ("bert-base-cased", "rte [222222]", "hype"): [3],
        ("bert-base-cased", "cola", "vanilla"): [1],
    }
    tasks = {section.tasks for section in data.sections}
    assert tasks == {("rte [111111]",), ("cola", "rte [222222]")}  # no mean over tasks holds both
    sentence = (
        f"The task 'rte' stands for 2 sets of examples, which are compared apart: [111111] in 4 runs, the first "
        f"finished 2026-01-01T00:01:00+00:00 and [222222] in 2 runs, the first finished {NEW}."
    )
    assert data.notes == [sentence]
    assert sentence in " ".join(summary(store).split())


def test_rows_of_replaced_weights_are_apart(tmp_path: Path) -> None:
    other = row("vanilla", 2, weights="fedcba9876543210", finished=NEW)
    data = load(store_of(tmp_path, row(), other))
    assert runs(data) == {
        ("bert-base-cased [012345]", "rte", "vanilla"): [1],
        ("bert-base-cased [fedcba]", "rte", "vanilla"): [2],
    }
    assert "The model 'bert-base-cased' stands for 2 sets of weights" in data.notes[0]
    assert "Equal digits" not in data.notes[0]


def test_a_checkpoint_that_is_taken_otherwise_since_is_apart(tmp_path: Path) -> None:
    """The head of another task was kept, and is drawn anew now: the files are the same."""
    now = row("vanilla", 2, weights="0123456789abcdef-fresh-head", finished=NEW)
    data = load(store_of(tmp_path, row(), now))
    assert {model for model, _, _ in runs(data)} == {"bert-base-cased [012345]", "bert-base-cased [012345-fresh-head]"}
    assert "Equal digits are the same files, taken in another way" in data.notes[0]


def test_rows_of_earlier_versions_have_their_fingerprints_in_their_specification(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed, weights in ((1, "a" * 16), (2, "b" * 16)):
        made = row(seed=seed)
        del made["data"], made["weights"]
        put(store, made)
        specification = {"id": made["id"], "weights": weights, "data": "drte"}
        (store.folder(made["id"]) / "cell.json").write_text(json.dumps(specification), "utf-8")
    data = load(store)
    assert {model for model, _, _ in runs(data)} == {"bert-base-cased [aaaaaa]", "bert-base-cased [bbbbbb]"}
    page = render(data)
    assert "2 rows of an earlier version of finetune-bench" in page
    assert "vanilla on rte (seeds 1 and 2)" in page


@pytest.mark.parametrize("content", ["", "[]", '{"weights": 7}', "[" * 100_000, None])
def test_a_specification_that_cannot_be_read_is_no_error(tmp_path: Path, content: str | None) -> None:
    made, store = row(), Store(tmp_path)
    del made["data"], made["weights"]
    put(store, made)
    path = store.folder(made["id"]) / "cell.json"
    path.unlink()
    if content is None:
        path.symlink_to("/dev/zero")
    else:
        path.write_text(content, "utf-8")
    assert runs(load(store)) == {("bert-base-cased", "rte", "vanilla"): [1]}


def test_a_setting_with_other_examples_of_its_own_is_no_change(tmp_path: Path) -> None:
    few = row("vanilla", 1, limit_train=10, data="1" * 16)
    searched = row("vanilla", 1, held_out=0.2, data="2" * 16)
    large = row("vanilla", 1, model="bert-large", weights="3" * 16)
    data = load(store_of(tmp_path, row(), few, searched, large))
    assert data.notes == []
    assert len(data.rows) == 4  # the row of a search is no newer one of the same run


def test_a_failed_row_without_fingerprints_is_of_the_newest(tmp_path: Path) -> None:
    failed = row("hype", 1, data=None)
    fail(failed, "out of memory")
    data = load(store_of(tmp_path, row(data="1" * 16), row(seed=2, data="2" * 16, finished=NEW), failed))
    assert ("bert-base-cased", "rte [222222]", "hype") in runs(data)
    assert "2 sets of examples" in data.notes[0]


def test_a_finished_row_without_fingerprints_is_apart(tmp_path: Path) -> None:
    data = load(store_of(tmp_path, row(), row(seed=2, weights=None, finished=NEW)))
    assert {model for model, _, _ in runs(data)} == {"bert-base-cased [012345]", "bert-base-cased [unknown]"}


def test_fingerprints_that_begin_alike_are_written_out(tmp_path: Path) -> None:
    data = load(store_of(tmp_path, row(data="1" * 16), row(seed=2, data="1" * 15 + "2")))
    assert {task for _, task, _ in runs(data)} == {f"rte [{'1' * 16}]", f"rte [{'1' * 15}2]"}


# --- code that was edited ---------------------------------------------------------------------------------------------


def test_rows_of_another_source_of_a_plugin_are_left_out_and_named(tmp_path: Path) -> None:
    before = [row("hype", seed, sources=["hype aaaa"]) for seed in (1, 2)]
    after = [row("hype", seed, sources=["hype bbbb"], finished=NEW) for seed in (2, 3)]
    data = load(store_of(tmp_path, *before, *after, row("vanilla", 1)))
    assert runs(data)["bert-base-cased", "rte", "hype"] == [2, 3]
    assert [made["finished"] for made in data.rows if made["method"] == "hype"] == [NEW, NEW]
    page = render(data)
    assert "2 older rows of the same runs left out" in page
    assert "Of these, 2 are of an older version of a method, of its former defaults, or of another source of a" in page


def test_no_method_is_held_against_one_under_another_source_of_the_task(tmp_path: Path) -> None:
    before = [row(method, 1, sources=["(task) aaaa"]) for method in ("vanilla", "hype")]
    after = row("vanilla", 1, sources=["(task) bbbb"], finished=NEW)
    data = load(store_of(tmp_path, *before, after, row("hype", 1, "cola")))
    assert runs(data) == {
        ("bert-base-cased", "rte", "vanilla"): [1],
        ("bert-base-cased", "cola", "hype"): [1],
    }


def test_a_version_that_is_older_is_named(tmp_path: Path) -> None:
    newer = row("hype", 2)
    newer["methods"][0]["version"] = 2
    assert "of an older version of a method, of its former defaults" in render(
        load(store_of(tmp_path, row("hype"), newer))
    )


def test_rows_of_former_defaults_are_left_out_and_named(tmp_path: Path) -> None:
    """A label stands for a method's defaults; when they change, two settings have it."""
    before, after = [row("hype", seed) for seed in (1, 2)], [row("hype", seed, finished=NEW) for seed in (2, 3)]
    for made in before:
        made["methods"][0]["parameters"] = {"eps": 1e-3}
        made["id"] = f"{made['seed']:016x}"
    for made in after:
        made["methods"][0]["parameters"] = {"eps": 1e-5, "added_since": 0}
    data = load(store_of(tmp_path, *before, *after, row("vanilla", 1)))
    assert runs(data)["bert-base-cased", "rte", "hype"] == [2, 3]
    assert "Of these, 2 are of an older version of a method, of its former defaults" in render(data)
    for made in before:
        made["methods"][0]["parameters"] = {"eps": 1e-5}
    data = load(store_of(tmp_path / "alike", *before, *after, row("vanilla", 1)))
    assert runs(data)["bert-base-cased", "rte", "hype"] == [1, 2, 3]
