"""A run held against a paper: tiers, verdicts, choice of settings, and the report of it in every format."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_bench import cli, registry
from finetune_bench.papers.presets import load_preset
from finetune_bench.papers.published import load_paper
from finetune_bench.recipe import Recipe
from finetune_bench.reports.published import own
from finetune_bench.reports.published.judge import Judged, JudgedClaim
from finetune_bench.reports.published.own import best_setting, how_chosen
from finetune_bench.reports.published.write import Verification, verification, write
from finetune_bench.store.store import Store
from finetune_bench.task import HELD_OUT
from tests.synthetic_store import make_row, put

HYPE = load_paper("hype")
SMALL = ("stsb", "cola", "mrpc", "rte")
PAPERS = Recipe(adam_eps=1e-5)
Level = Callable[[str, str, int], float]


def parts(label: str) -> list[dict[str, Any]]:
    """What a row has of a stack: every parameter, as it is kept in JSON."""
    stack = registry.make_stack(label)
    return [
        {
            "name": method.name,
            "version": 1,
            "parameters": {
                field.name: str(value) if isinstance(value := getattr(method, field.name), str) else value
                for field in dataclasses.fields(method)
            },
        }
        for method in stack.methods
    ]


@pytest.mark.parametrize("method", HYPE.methods)
def test_every_method_of_the_paper_is_known_in_a_row(method: str) -> None:
    """R3F without noise of its own has the choice "none", which was taken for the value that TOML can't write."""
    published = HYPE.methods[method]
    calls = [
        f"{part['name']}({','.join(f'{key}={values[0]}' for key, values in part.items() if key != 'name')})"
        for part in published
    ]
    row: Any = {"methods": parts("+".join(calls))}
    assert own._is(published, None, row)
    assert not own._is(published, None, {"methods": parts("rdrop+mixout+noisytune")})  # type: ignore[typeddict-item]


def make_store(
    folder: Path,
    level: Level,
    *,
    methods: Sequence[str] = ("vanilla", "hype"),
    tasks: Sequence[str] = SMALL,
    seeds: int = 5,
    recipe: Recipe = PAPERS,
    model: str = "bert-large-cased",
    **changes: Any,
) -> Store:
    """Write rows whose scores, in points, are what `level` says of method, task and seed."""
    store = Store(folder)
    store.cells.mkdir(parents=True, exist_ok=True)
    for method in methods:
        for task in tasks:
            for seed in range(1, seeds + 1):
                row = make_row(method.partition("(")[0], task, seed)
                split = next(iter(row["metrics"]))
                row |= {
                    "method": method,
                    "methods": parts(method),
                    "model": model,
                    "recipe": recipe.to_dict(),
                } | changes
                row["metrics"] = {split: {row["metric"]: level(method, task, seed) / 100}}
                what = repr((method, task, seed, recipe, model, changes))
                row["id"] = hashlib.sha256(what.encode()).hexdigest()[:16]
                put(store, row)
    return store


def published(method: str, task: str) -> float:
    score = HYPE.find(1, "bert-large-cased", method, task)
    assert score is not None
    return score.mean


def as_published(method: str, task: str, seed: int) -> float:
    """The published means, with a spread of half a point and gains of nearly the same size at every seed."""
    wobble = 0.5 * (seed - 3) + (0.05 * (seed % 2) if method != "vanilla" else 0)
    return published("Vanilla" if method == "vanilla" else "HyPe-N", task) + wobble


def verify(store: Store, margin: float | None = None) -> Verification:
    return verification(HYPE, store, margin)


def one(verified: Verification, method: str, task: str, table: int = 1, model: str = "bert-large-cased") -> Judged:
    (found,) = [
        judged
        for judged in verified.judged
        if (judged.score.method, judged.score.task, judged.score.model) == (method, task, model)
        and table in judged.tables
        and judged.score.scale is None
    ]
    return found


def claim(verified: Verification, name: str) -> JudgedClaim:
    (found,) = [judged for judged in verified.claims if judged.claim.name == name]
    return found


@pytest.mark.slow
def test_the_papers_own_setting_is_judged_by_level_and_gain(tmp_path: Path) -> None:
    verified = verify(make_store(tmp_path, as_published), margin=5)
    judged = one(verified, "HyPe-N", "rte")
    assert (judged.standing.tier, judged.standing.differing) == (1, ())
    assert judged.level is not None and judged.level.verdict == "reproduced"
    assert judged.level.difference.n == 3
    assert set(judged.tables) == {1, 5, 9}
    bert = claim(verified, "bert").gain
    assert bert is not None
    assert (bert.tier, bert.sign, bert.size) == (1, "supported", "as claimed")
    assert bert.own.value == pytest.approx(1.60, abs=0.05)
    assert bert.remaining[0] == pytest.approx(0.077, abs=1e-3)
    assert verified.contradicted == []


@pytest.mark.slow
def test_a_small_sample_leaves_a_level_undecided_at_the_default_margin(tmp_path: Path) -> None:
    """Three published runs with a deviation of 1.64 can't show a point."""
    level = one(verify(make_store(tmp_path, as_published)), "HyPe-N", "rte").level
    assert level is not None
    assert level.verdict == "undecided"
    assert level.smallest_margin > level.margin


@pytest.mark.slow
def test_a_margin_is_never_below_what_the_examples_allow(tmp_path: Path) -> None:
    verified = verify(make_store(tmp_path, as_published))
    of_rte, of_cola = one(verified, "HyPe-N", "rte").level, one(verified, "Vanilla", "cola").level
    assert of_rte is not None and of_cola is not None
    assert of_rte.margin == pytest.approx(100 * (0.7437 * 0.2563 / 277) ** 0.5)
    assert of_cola.margin == 1.0


@pytest.mark.slow
def test_another_checkpoint_is_judged_by_sign_only(tmp_path: Path) -> None:
    verified = verify(make_store(tmp_path, as_published, model="minilm", limit_train=1000))
    judged = one(verified, "HyPe-N", "rte")
    assert judged.standing.tier == 2
    assert judged.standing.differing == (
        "checkpoint minilm instead of bert-large-cased",
        "1,000 training examples instead of all training examples",
    )
    assert judged.level is None
    assert judged.gain is not None
    assert (judged.gain.sign, judged.gain.size) == ("supported", None)
    text = (write(verified, tmp_path / "out", ["markdown"])[0]).read_text("utf-8")
    assert "holds here" in text
    assert "reproduced" not in text.partition("## What the verdicts are")[0].partition("## AdvGLUE")[0]


def test_another_checkpoint_with_another_recipe_is_not_judged(tmp_path: Path) -> None:
    recipe = dataclasses.replace(PAPERS, weight_decay=0.01)
    verified = verify(make_store(tmp_path, as_published, model="minilm", recipe=recipe))
    judged = one(verified, "HyPe-N", "rte")
    assert judged.standing.tier == 3
    assert "weight decay 0.01 instead of 0.1" in judged.standing.differing
    assert judged.gain is not None and judged.gain.sign is None
    assert verified.contradicted == []
    text = markdown(verified, tmp_path)
    assert "; 7, as both the recipe and the checkpoint or the data differ. `verify-claims.csv` says" in text
    gains = sum(one.gain is not None for one in verified.judged)
    assert f"Not judged are {gains} of {gains} gains, as both the recipe and the checkpoint or the data differ." in text
    assert "| not judged |" not in text
    csv_text = write(verified, tmp_path / "csv", ["csv"])[1].read_text("utf-8")
    assert "weight decay 0.01 instead of 0.1" in csv_text


@pytest.mark.parametrize(
    ("recipe", "fact"),
    [
        (dataclasses.replace(PAPERS, weight_decay=0.01), "weight decay 0.01 instead of 0.1"),
        (dataclasses.replace(PAPERS, epochs=10), "epochs 10 instead of 3"),
        (dataclasses.replace(PAPERS, epochs=None, steps=100), "steps 100 instead of none"),
        (dataclasses.replace(PAPERS, lr=1e-3), "learning rate 0.001, which the paper did not try"),
        (dataclasses.replace(PAPERS, beta2=0.999), "beta2 0.999 instead of 0.99"),
    ],
)
def test_another_recipe_drops_a_tier_and_says_what_differs(tmp_path: Path, recipe: Recipe, fact: str) -> None:
    judged = one(verify(make_store(tmp_path, as_published, tasks=("rte",), recipe=recipe)), "HyPe-N", "rte")
    assert judged.standing.tier == 2
    assert fact in judged.standing.differing
    assert judged.level is None


def test_an_epsilon_is_told_and_drops_no_tier(tmp_path: Path) -> None:
    judged = one(verify(make_store(tmp_path, as_published, tasks=("rte",), recipe=Recipe())), "HyPe-N", "rte")
    assert judged.standing.tier == 1
    assert judged.standing.told == (
        "adam eps 1e-06 instead of 1e-05",
        "1 setting tried instead of 8",
        "5 seeds instead of 3",
    )


def test_the_owner_of_a_checkpoint_on_the_hub_may_differ(tmp_path: Path) -> None:
    store = make_store(tmp_path, as_published, tasks=("rte",), model="google-bert/bert-large-cased")
    assert one(verify(store), "HyPe-N", "rte").standing.tier == 1


@pytest.mark.slow
def test_the_best_setting_is_chosen_as_the_paper_chose(tmp_path: Path) -> None:
    def better(method: str, task: str, seed: int) -> float:
        return as_published(method, task, seed) + 1

    store = make_store(tmp_path, as_published, tasks=("rte",))
    make_store(tmp_path, better, tasks=("rte",), recipe=dataclasses.replace(PAPERS, lr=4e-5))
    judged = one(verify(store), "HyPe-N", "rte")
    assert (judged.chosen.learning_rate, judged.chosen.tried, judged.chosen.by) == (4e-5, 2, "the reported scores")
    single = one(verify(make_store(tmp_path / "single", as_published, tasks=("rte",))), "HyPe-N", "rte")
    assert single.chosen.by == ""
    assert single.bias == pytest.approx(1.35, abs=0.01)  # eight settings, deviation 1.64, three runs
    assert 0 < judged.bias < single.bias
    assert one(verify(store), "Vanilla", "rte").bias < judged.bias


def test_a_setting_with_fewer_seeds_is_not_chosen_for_its_luck(tmp_path: Path) -> None:
    store = make_store(tmp_path, as_published, tasks=("rte",))
    lucky = dataclasses.replace(PAPERS, lr=4e-5)
    make_store(tmp_path, lambda *_: 99.0, tasks=("rte",), seeds=1, recipe=lucky)
    assert one(verify(store), "HyPe-N", "rte").chosen.learning_rate == PAPERS.lr


def test_held_out_data_choose_where_a_search_set_some_aside(tmp_path: Path) -> None:
    """The best on the reported scores is not chosen, and how much better it looks is told."""
    store = Store(tmp_path)
    for lr, held_out, reported in ((1e-5, 0.7, 70.0), (2e-5, 0.6, 72.0)):
        for method in ("vanilla", "hype"):
            make_store(
                tmp_path,
                lambda m, t, s, reported=reported: reported + 0.1 * s,  # type: ignore[misc]
                methods=(method,),
                tasks=("rte",),
                recipe=dataclasses.replace(PAPERS, lr=lr),
                held_out=0.2,
            )
        for cell, (row, _) in list(store.read()[0].items()):
            if row["recipe"]["lr"] == lr and "held_out" not in row["metrics"]:
                row["metrics"]["held_out"] = {"accuracy": held_out}
                store.write({"id": cell}, row, arrays={"trace": {}, "predictions": {}})
    judged = one(verify(store), "HyPe-N", "rte")
    assert (judged.chosen.learning_rate, judged.chosen.by) == (1e-5, "held-out data")
    assert judged.chosen.optimism == pytest.approx(2.0)
    assert "20% of the training examples set aside" in judged.standing.differing


@pytest.mark.parametrize("split", [HELD_OUT, "validation"])
def test_of_settings_that_tie_the_lowest_rate_counts_and_is_told(split: str) -> None:
    rows = []
    for label, rate, score in (("hype", 3e-5, 0.7), ("hype(eps=1e-4)", 1e-5, 0.7), ("hype", 2e-5, 0.6)):
        for seed in (1, 2):
            row = make_row("hype", "rte", seed)
            row["recipe"] = {**row["recipe"], "lr": rate}
            rows.append(
                row | {"method": label, "metrics": {name: {"accuracy": score} for name in ("validation", split)}}
            )
    rows.append({**rows[0], "recipe": {**rows[0]["recipe"], "lr": 9e-5}})  # of one seed, and so no candidate
    chosen = best_setting(rows, "validation", "accuracy")
    assert chosen is not None
    assert (chosen.label, chosen.learning_rate, chosen.tried) == ("hype(eps=1e-4)", 1e-5, 3)
    assert "the best of 3 settings by" in how_chosen(chosen)
    assert "2 settings have this mean, and of these the lowest learning rate counts" in how_chosen(chosen)


def test_a_claim_needs_all_of_its_tasks(tmp_path: Path) -> None:
    verified = verify(make_store(tmp_path, as_published, tasks=("rte", "cola")))
    judged = claim(verified, "bert")
    assert judged.gain is None
    assert judged.missing == "HyPe-N on stsb, Vanilla on stsb, HyPe-N on mrpc and Vanilla on mrpc"
    text = markdown(verified, tmp_path)
    total = len(HYPE.claims)
    assert (
        f"Not judged are {total} of {total} claims: {total} of them, for want of finished runs of both methods on "
        "every task that they are about. `verify-claims.csv` says of each what is missing, or differs."
    ) in text
    assert "not judged, there" not in text
    assert "`roberta`" not in text


def test_uniform_noise_is_the_papers_symmetric_one(tmp_path: Path) -> None:
    one_sided = "hype(noise=uniform_onesided)"
    verified = verify(make_store(tmp_path, as_published, methods=("vanilla", one_sided), tasks=("rte",)))
    assert {judged.score.method for judged in verified.judged} == {"Vanilla"}
    assert f"Without a counterpart in the paper: `{one_sided}`" in markdown(verified, tmp_path)


def test_a_scale_that_a_table_fixes_is_matched(tmp_path: Path) -> None:
    verified = verify(make_store(tmp_path, as_published, methods=("vanilla", "hype(eps=1e-2)"), tasks=("rte",)))
    found = [judged.score for judged in verified.judged if judged.score.method == "HyPe-N"]
    assert [(score.table, score.scale, score.mean) for score in found] == [(8, 1e-2, 74.13)]


@pytest.mark.slow
def test_collapsed_runs_are_told_apart(tmp_path: Path) -> None:
    store = make_store(tmp_path, as_published)
    cell, (row, _) = next(
        (c, r) for c, r in store.read()[0].items() if r[0]["method"] == "vanilla" and r[0]["seed"] == 1
    )
    row["collapsed"] = "all one class"
    store.write({"id": cell}, row, arrays={"trace": {}, "predictions": {}})
    gain = claim(verify(store), "bert").gain
    assert gain is not None and gain.uncollapsed is not None
    assert gain.uncollapsed.n == gain.own.n - 1


def test_pairs_that_began_otherwise_are_no_pairs(tmp_path: Path) -> None:
    store = make_store(tmp_path, as_published, methods=("vanilla",), tasks=("rte",))
    make_store(
        tmp_path, as_published, methods=("hype",), tasks=("rte",), hashes={"init": "x", "order": "y", "data": "z"}
    )
    gain = one(verify(store), "HyPe-N", "rte").gain
    assert gain is not None
    assert gain.own.n == 0
    assert gain.sign == "undecided"


def worse(method: str, task: str, seed: int) -> float:
    return as_published("vanilla", task, seed) - (3 + 0.1 * (seed % 2) if method != "vanilla" else 0)


@pytest.mark.slow
def test_a_contradicted_claim_ends_with_exit_code_4(tmp_path: Path, capsys: Any) -> None:
    store = make_store(tmp_path / "run", worse, model="minilm")
    assert cli.main(["verify", "hype", str(store.root)]) == 4
    out = capsys.readouterr().out
    assert "does not hold here" in out
    assert "The claim `bert` is contradicted" in (store.root / "verify" / "hype" / "verify.md").read_text("utf-8")
    fine = make_store(tmp_path / "fine", as_published)
    assert cli.main(["verify", "hype", str(fine.root)]) == 0


def markdown(verified: Verification, folder: Path) -> str:
    return write(verified, folder / "written", ["markdown"])[0].read_text("utf-8")


@pytest.mark.slow
def test_every_format_is_written_and_agrees(tmp_path: Path) -> None:
    verified = verify(make_store(tmp_path / "run", as_published))
    paths = write(verified, tmp_path / "out", ["markdown", "html", "csv", "latex"])
    names = {path.name for path in paths}
    assert {"verify.md", "verify.html", "verify-scores.csv", "verify-claims.csv", "verify.tex"} <= names
    with (tmp_path / "out" / "verify-claims.csv").open(encoding="utf-8") as file:
        lines = {line["claim"]: line for line in csv.DictReader(file)}
    assert set(lines) == {claim.name for claim in HYPE.claims}
    assert lines["bert"]["gain_sign"] == "supported"
    assert lines["roberta"]["gain_tier"] == ""  # HyPe-U was not run
    html = (tmp_path / "out" / "verify.html").read_text("utf-8")
    assert "Means in the same setting" in html
    again = write(verify(Store(tmp_path / "run")), tmp_path / "again", ["markdown", "html", "csv", "latex"])
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_the_two_sets_of_table_6_are_shown_by_their_counts(tmp_path: Path) -> None:
    text = markdown(verify(make_store(tmp_path, as_published, tasks=("rte",), seeds=2)), tmp_path)
    rows = [line for line in text.splitlines() if (" on sst2 |" in line and "33.03" in line) or "34.45" in line]
    assert rows == [
        "| Vanilla on sst2 | 33.03 | 469 | 1407 | — | — |",
        "| HyPe-N on sst2 | 34.45 | — | — | 51 | 153 |",
    ]
    assert "| Table 6 |" in text  # among the slips


def test_a_run_without_a_score_is_a_report_without_verdicts(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    store.cells.mkdir(parents=True)
    text = markdown(verify(store), tmp_path)
    assert "No run has the setting of a published mean" in text
    assert "No claim can be judged by this run." in text


def test_a_preset_is_told_on_every_page(tmp_path: Path) -> None:
    from finetune_bench.reports.html import Html
    from finetune_bench.reports.markdown import Markdown

    store = make_store(tmp_path / "run", as_published, tasks=("rte",), seeds=2)
    told = load_preset("hype-table1").described("small")
    store.write_study({"preset": told})
    assert told.endswith("Its scores are not to be held against the published ones.")
    written = [*Markdown().write(store, tmp_path)[:1], *Html().write(store, tmp_path)]
    written += write(verify(store), tmp_path, ["markdown", "html"])
    for path in written:
        first = path.read_text("utf-8").partition("Its scores are not to be held")[0]
        assert "minilm in place of bert-large-cased" in first, path
        assert len(first) < len(path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "hyep", "RUN"], "There is no paper called 'hyep'. Did you mean 'hype'?"),
        (
            ["verify", "hype"],
            "expected the folder of the run that is held against it, as in 'finetune-bench verify hype RUN'",
        ),
        (["verify", "RUN", "--margin", "2"], "--margin: it is for holding a run against a paper"),
        (["verify", "hype", "RUN", "--margin", "0"], "--margin: expected a number of points above 0; got 0."),
        (["verify", "hype", "RUN", "--format", "pdf"], "There is no format of a verification called 'pdf'."),
        (["verify", "hype", "RUN", "--format", ""], "--format: expected one format or more"),
    ],
)
def test_what_is_wrong_is_told(arguments: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    store = make_store(tmp_path / "run", as_published, tasks=("rte",), seeds=1)
    assert cli.main([str(store.root) if part == "RUN" else part for part in arguments]) == 2
    assert message in capsys.readouterr().err
