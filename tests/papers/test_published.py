"""Published numbers: averages, gains and counts that follow from others do follow, but for the known slips."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from finetune_bench import registry
from finetune_bench.errors import UnknownName
from finetune_bench.papers.published import AVERAGES, GAIN, Claim, Paper, Score, load_paper, paper_names
from finetune_bench.recipe import Recipe

HYPE = load_paper("hype")
ROUNDING = 0.01001  # of an average, 0.005, and of the scores that it is the mean of
# Table, model, method: where a printed average is no mean of its row.
SLIPS = {(5, "bert-large-cased", "Vanilla"), (18, "bert-large-cased", "Vanilla")}


def row_of(average: Score) -> list[Score]:
    """The scores that a printed average is the mean of."""
    small = ("stsb", "cola", "mrpc", "rte")
    row = [
        score
        for score in HYPE.scores
        if (score.table, score.model, score.method, score.scale)
        == (average.table, average.model, average.method, average.scale)
        and score.task not in AVERAGES
    ]
    in_table_12 = average.table == 12 and average.task == "average"
    return [score for score in row if score.task in small] if in_table_12 else row


def averages(metric: str) -> list[Score]:
    return [score for score in HYPE.scores if score.task in AVERAGES and score.metric == metric]


def test_every_table_with_scores_is_here() -> None:
    counts = Counter(score.table for score in HYPE.scores)
    printed = {1: 60, 2: 15, 3: 30, 4: 36, 5: 60, 6: 12, 7: 36, 8: 28, 9: 15, 12: 38, 16: 88, 17: 15, 18: 30}
    assert dict(counts) == printed
    assert set(HYPE.figures) == {"Figure 2", "Figure 3", "Figure 4"}
    assert {entry.method: entry.gigabytes for entry in HYPE.memory} == {"R3F": 16, "R-Drop": 16, "HyPe-N": 11}


def test_printed_averages_are_the_means_of_their_rows_but_for_the_slips() -> None:
    wrong = set()
    for average in averages("average"):
        row = row_of(average)
        if row:
            mean = sum(score.mean for score in row) / len(row)
            decimal = 0.045 if average.table == 12 else 0.0  # its scores have a single one
            if abs(mean - average.mean) > ROUNDING + decimal:
                wrong.add((average.table, average.model, average.method))
    assert wrong == SLIPS
    named = " ".join(slip.where + slip.quantity for slip in HYPE.discrepancies)
    assert "Tables 5 and 18" in named
    assert "average of vanilla, bert-large-cased" in named


def test_printed_mean_gains_follow_from_the_rows() -> None:
    found = 0
    for gain in averages(GAIN):
        if gain.table == 12:  # the rows of BERT are not printed
            continue
        than = "Vanilla" if gain.table == 4 else gain.method.removeprefix("HyPe-N+")
        pairs = [
            (
                HYPE.find(gain.table, gain.model, gain.method, task, gain.scale),
                HYPE.find(gain.table, gain.model, than, task),
            )
            for task in ("stsb", "cola", "mrpc", "rte")
        ]
        mean = sum(a.mean - b.mean for a, b in pairs if a and b) / 4
        assert abs(mean - gain.mean) <= 2 * ROUNDING, gain
        found += 1
    assert found == 4 + 8


@pytest.mark.parametrize("claim", HYPE.claims, ids=lambda claim: claim.name)
def test_a_claims_gain_follows_from_its_table(claim: Claim) -> None:
    gains = []
    for task in claim.tasks:
        better = HYPE.find(claim.table, claim.model, claim.method, task, claim.scale)
        other = HYPE.find(claim.table, claim.model, claim.than, task, claim.than_scale)
        assert better is not None and other is not None, task
        gains.append(better.mean - other.mean)
    assert abs(sum(gains) / len(gains) - claim.gain) <= 2 * ROUNDING
    assert (claim.printed is not None) == (claim.name == "xlnet")


def test_equal_numbers_in_several_tables_are_equal_but_for_one_deviation() -> None:
    """Tables 1, 5 and 16 repeat rows of one another."""
    differing = set()
    of_row: dict[tuple[object, ...], list[Score]] = {}
    for score in HYPE.scores:
        if score.table in (1, 5, 16) and score.task not in AVERAGES:
            of_row.setdefault((score.model, score.method, score.task), []).append(score)
    for key, scores in of_row.items():
        for one, other in itertools.combinations(scores, 2):
            assert one.mean == other.mean
            if one.sd != other.sd:
                differing.add(key)
    assert differing == {("bert-large-cased", "R3F", "stsb")}


def test_deviations_that_were_lost_stay_unknown_and_are_never_zero() -> None:
    of_table_1 = [score for score in HYPE.scores if score.table == 1 and score.task not in AVERAGES]
    assert all(score.sd for score in of_table_1)
    assert HYPE.find(3, "roberta-large", "Vanilla", "qnli").sd == 1.14  # type: ignore[union-attr]
    assert HYPE.find(3, "roberta-large", "Vanilla", "rte").sd is None  # type: ignore[union-attr]
    assert all(score.sd is None or score.sd > 0 for score in HYPE.scores)
    assert {score.runs for score in HYPE.scores if score.note.startswith("copied")} == {None}


def test_the_two_rows_of_table_6_are_of_two_sets() -> None:
    """Every score of vanilla is a whole count on the hidden test set; of HyPe's row, on the development set."""
    for score in (score for score in HYPE.scores if score.table == 6):
        sizes = HYPE.recounted[score.task]
        rows = sizes["hidden_test"] if score.method == "Vanilla" else 3 * sizes["dev"]
        # The printed 34.45 is 153/444 = 34.459, cut instead of rounded.
        nearest = 100 * round(score.mean * rows / 100) / rows
        assert abs(nearest - score.mean) < 0.0095, score
        assert score.evaluated_on == ("hidden test" if score.method == "Vanilla" else "dev")


def test_scores_on_sick_are_of_three_runs_on_495_rows() -> None:
    scores = [score.mean for score in HYPE.scores if score.table == 7 and score.task == "sick"]
    assert len(scores) == 6
    assert all(abs(100 * round(score * 14.85) / 1485 - score) < 0.00501 for score in scores)


def test_every_method_of_the_tables_is_a_stack_here() -> None:
    copied = {"Top-K Tuning", "Mixout", "RecAdam", "LNSR"}  # from earlier work, with unknown settings
    assert {score.method for score in HYPE.scores} - copied == set(HYPE.methods)
    for parts in HYPE.methods.values():
        for part in parts:
            fields = registry.method_class(part["name"]).__dataclass_fields__
            assert set(part) - {"name", "dropout"} <= set(fields), part


def test_recipes_differ_by_model_and_task() -> None:
    assert HYPE.recipe_of("bert-large-cased", "rte")["batch_size"] == 16
    electra = HYPE.recipe_of("google/electra-large-discriminator", "rte")
    assert (electra["batch_size"], electra["epochs"], electra["warmup"]) == (32, 10, 0.1)
    xlnet = HYPE.recipe_of("xlnet-large-cased", "cola")
    assert (xlnet["batch_size"], xlnet["steps"], xlnet["warmup"]) == (64, 1200, 120)
    assert "epochs" not in xlnet
    for score in HYPE.scores:
        Recipe(**HYPE.recipe_of(score.model, score.task))


def test_hype_was_chosen_among_twice_as_many_settings() -> None:
    def settings(paper: Paper, table: int, method: str, scale: float | None = None) -> int:
        score = paper.find(table, "bert-large-cased", method, "rte", scale)
        assert score is not None
        return paper.settings_of(score)

    assert settings(HYPE, 1, "HyPe-N") == 8
    assert settings(HYPE, 1, "Vanilla") == 4
    assert settings(HYPE, 17, "HyPe-N", 1e-5) == 4


def test_an_unknown_paper_is_named() -> None:
    assert "hype" in paper_names()
    with pytest.raises(UnknownName, match="There is no paper called 'hyep'. Did you mean 'hype'"):
        load_paper("hyep")
