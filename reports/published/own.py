"""Find the runs that a published score can be held against, and choose their setting as the paper chose its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_bench.files import Damaged
from finetune_bench.papers.published import Paper, Score
from finetune_bench.recipe import OPTIMIZERS
from finetune_bench.reports.rows.sections import Data, canonical
from finetune_bench.reports.text import counted, points
from finetune_bench.reports.topics.choosing import best_settings, those_that_learned
from finetune_bench.stats.estimates import t_interval
from finetune_bench.stats.published import Summary
from finetune_bench.store import analyses
from finetune_bench.store.row import MethodEntry, Row, Status
from finetune_bench.task import HELD_OUT

# What a published score's task is called here, where it is one split of a task.
SPLITS = {"mnli": ("mnli", "validation_matched"), "mnli_mm": ("mnli", "validation_mismatched")}
# A set of the analysis `transfer` counts as a split of the task that was trained on, named with this before it.
TRANSFERRED = "transfer "
# What the sets of published scores are called there, where that is another name.
_SETS = {"mnli": "mnli_matched", "mnli_mm": "mnli_mismatched", "adv_mnli_mm": "adv_mnli_mismatched"}
# Fields of a recipe that decide whether two baselines are the same; what else differs is told.
_DECISIVE = ("optimizer", "epochs", "steps", "batch_size", "warmup", "weight_decay", "beta1", "beta2", "max_length")
_TOLD = ("adam_eps",)
# The axes of a group; runs that differ in them are never mixed.
_GROUPED = ("model", "weights", "limit_train", "held_out", "device")


@dataclass(frozen=True)
class Chosen:
    """A chosen setting of a method has these scores.

    Attributes:
        label: the method's label.
        learning_rate: its learning rate.
        rows: the finished runs by seed.
        split: the evaluation split.
        metric: the score's name.
        tried: how many settings it was chosen among.
        tied: how many of these have its mean; the lowest learning rate of them counts.
        by: what it was chosen by; "" where there was one setting only.
        optimism: how much better, in points, the best on the reported scores looks; NaN where it is the chosen one.
        unfinished: runs of the setting without a score.
    """

    label: str
    learning_rate: float
    rows: Mapping[int, Row]
    split: str
    metric: str
    tried: int
    tied: int
    by: str
    optimism: float
    unfinished: int

    def score(self, seed: int) -> float:
        """Return the score of a seed in points; NaN where there is none."""
        return _score(self.rows[seed], self.split, self.metric) if seed in self.rows else math.nan

    @property
    def summary(self) -> Summary:
        """Return the mean, deviation and number of the scores."""
        estimate = t_interval([self.score(seed) for seed in self.rows])
        sd = estimate.standard_error * math.sqrt(estimate.n) if estimate.n > 1 else None
        return Summary(estimate.value, sd, estimate.n)


@dataclass(frozen=True)
class Standing:
    """A standing says how near our runs are to a published score's.

    Attributes:
        tier: 1 for the same checkpoint, data, recipe and metric; 2 for the same recipe on another checkpoint or other
            data, or another recipe on the same; 3 where both differ.
        differing: the facts that differ and decide the tier.
        told: other facts that differ.
    """

    tier: int
    differing: tuple[str, ...]
    told: tuple[str, ...]


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows by checkpoint, training examples and device; longer baselines are left out."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("stretch", 1) == 1:
            found.setdefault(canonical([row.get(name) for name in _GROUPED]), []).append(row)
    return [found[key] for key in sorted(found)]


def split_of(score: Score) -> tuple[str, str]:
    """Return the task that a published score's model was trained on, and the split that it was scored on."""
    of_set = TRANSFERRED + _SETS.get(score.task, score.task)
    if score.task.startswith("adv_"):
        return score.task.split("_")[1], of_set
    if score.trained_on:
        return score.trained_on, of_set
    return SPLITS.get(score.task, (score.task, "validation"))


def with_transfer(data: Data) -> list[Row]:
    """Return all rows, with the accuracies of the analysis `transfer` among the metrics where it was made."""
    rows: list[Row] = []
    for row in data.rows:
        try:
            result = analyses.read(data.store.folder(row["id"]), "transfer") if row["status"] == Status.DONE else None
        except Damaged:  # the report of the run tells
            result = None
        sets = {
            TRANSFERRED + name.removesuffix(": accuracy"): {"accuracy": value}
            for name, value in ({} if result is None else result["numbers"]).items()
            if name.endswith(": accuracy")
        }
        rows.append({**row, "metrics": {**(row.get("metrics") or {}), **sets}} if sets else row)
    return rows


def choose(paper: Paper, score: Score, group: Sequence[Row]) -> tuple[Chosen, Standing] | None:
    """Return the runs of a group that a published score can be held against; None where there are none.

    Of several recipes the nearest to the paper's counts. Of several settings (learning rates, strengths) with as many
    seeds the best counts: by held-out training data where the runs set some aside, else by the reported scores, as the
    paper's own choice.
    """
    task, split = split_of(score)
    rows = [row for row in group if row["task"] == task and _is(paper.methods.get(score.method), score.scale, row)]
    recipes: dict[str, list[Row]] = {}
    for row in rows:
        recipes.setdefault(canonical({**row["recipe"], "lr": None}), []).append(row)
    best: tuple[Chosen, Standing] | None = None
    for _, variant in sorted(recipes.items()):
        chosen = best_setting(variant, split, score.metric)
        if chosen is not None:
            place = standing(paper, score, chosen)
            if best is None or place.tier < best[1].tier:
                best = chosen, place
    return best


def standing(paper: Paper, score: Score, chosen: Chosen) -> Standing:
    """Tell what differs between a published score and our runs."""
    row = next(iter(chosen.rows.values()))
    usual = {"optimizer": OPTIMIZERS[0]}  # which recipes leave out
    published, ours = usual | paper.recipe_of(score.model, score.task), usual | row["recipe"]

    def differing(names: Sequence[str]) -> list[str]:
        pairs = [(name, published.get(name), ours.get(name)) for name in names]
        return [
            f"{name.replace('_', ' ')} {_short(own)} instead of {_short(theirs)}"
            for name, theirs, own in pairs
            if theirs != own
        ]

    recipe = differing(_DECISIVE)
    same_model = _bare(row["model"]) == _bare(score.model)
    where = [] if same_model else [f"checkpoint {row['model']} instead of {score.model}"]
    if row.get("limit_train") != score.examples:
        where.append(f"{_examples(row.get('limit_train'))} instead of {_examples(score.examples)}")
    if row.get("held_out"):
        where.append(f"{row['held_out']:.0%} of the training examples set aside")
    if chosen.split in (row.get("subset") or []):
        where.append("a subset of the evaluation examples")
    if same_model and not any(math.isclose(chosen.learning_rate, rate) for rate in paper.learning_rates):
        where.append(f"learning rate {chosen.learning_rate:g}, which the paper did not try")
    told = differing(_TOLD)
    settings = paper.settings_of(score)
    if chosen.tried != settings:
        told.append(f"{counted(chosen.tried, 'setting')} tried instead of {settings}")
    if chosen.by == "held-out data":
        told.append("chosen on held-out training data instead of the reported scores")
    if len(chosen.rows) != score.runs:
        told.append(f"{counted(len(chosen.rows), 'seed')} instead of {score.runs or 'an unknown number'}")
    return Standing(1 + bool(recipe) + bool(where), (*where, *recipe), tuple(told))


def _is(parts: Sequence[Mapping[str, Any]] | None, scale: float | None, row: Row) -> bool:
    """Return whether a row's stack is a published method, of the scale that was published if it was fixed."""
    entries = list(row.get("methods") or [])
    if parts is None or len(parts) != len(entries):
        return False
    by_name = {entry["name"]: entry for entry in entries}
    return all(part["name"] in by_name and _fits(part, scale, by_name[part["name"]]) for part in parts)


def _fits(part: Mapping[str, Any], scale: float | None, entry: MethodEntry) -> bool:
    parameters = entry.get("parameters") or {}
    for name, allowed in part.items():
        if name == "name":
            continue
        value = parameters.get(name)
        values = [scale] if name == "eps" and "eps" in part and scale is not None else allowed
        if not any(_same(value, other) for other in values):
            return False
    return True


def _same(value: Any, allowed: Any) -> bool:
    """Return whether a parameter has an allowed value; TOML has no null, so that "none" stands for it, too."""
    if isinstance(value, int | float) and isinstance(allowed, int | float):
        return math.isclose(value, allowed)
    return bool(value == allowed or (value is None and allowed == "none"))


def best_setting(rows: Sequence[Row], split: str, metric: str) -> Chosen | None:
    """Return the best setting of some runs of one method, of those with the most seeds; None where none has a score."""
    settings: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        settings.setdefault((row["method"], float(row["recipe"]["lr"])), []).append(row)
    scored = {
        setting: {row["seed"]: row for row in of_setting if math.isfinite(_score(row, split, metric))}
        for setting, of_setting in sorted(settings.items(), key=lambda item: item[0][::-1])  # the lowest rate first
    }
    most = max(map(len, scored.values()), default=0)
    if most == 0:
        return None
    complete = {setting: by_seed for setting, by_seed in scored.items() if len(by_seed) == most}

    def mean(setting: tuple[str, float], where: str) -> float:
        value = t_interval([_score(row, where, metric) for row in complete[setting].values()]).value
        return -math.inf if math.isnan(value) else value

    reported = {setting: mean(setting, split) for setting in complete}
    held_out = {setting: mean(setting, HELD_OUT) for setting in complete}
    is_held_out = min(held_out.values()) > -math.inf
    able = those_that_learned({setting: by_seed.values() for setting, by_seed in complete.items()})
    tied = best_settings({setting: held_out[setting] for setting in able} if is_held_out else reported)
    setting = tied[0]
    is_chosen = len(complete) > 1
    return Chosen(
        label=setting[0],
        learning_rate=setting[1],
        rows=complete[setting],
        split=split,
        metric=metric,
        tried=len(complete),
        tied=len(tied),
        by=("held-out data" if is_held_out else "the reported scores") if is_chosen else "",
        optimism=max(reported.values()) - reported[setting] if is_held_out and is_chosen else math.nan,
        unfinished=len(settings[setting]) - len(complete[setting]),
    )


def how_chosen(chosen: Chosen) -> str:
    """Return among how many settings, by what, with how much optimism and whether by a tie, as the end of a sentence.

    Nothing was chosen where there is nothing that it was chosen by.
    """
    text = f"the best of {counted(chosen.tried, 'setting')} by {chosen.by}"
    if not math.isnan(chosen.optimism):
        text += f"; the best on the reported scores is {points(chosen.optimism)} higher"
    if chosen.tied > 1:
        text += f"; {chosen.tied} settings have this mean, and of these the lowest learning rate counts"
    return text


def _score(row: Row, split: str, metric: str) -> float:
    if row["status"] != Status.DONE:
        return math.nan
    value = ((row.get("metrics") or {}).get(split) or {}).get(metric)
    return math.nan if value is None else 100 * value


def _bare(model: str) -> str:
    """Return a checkpoint's name without its owner on the hub, some of which were renamed."""
    return model.rstrip("/").rpartition("/")[2].lower()


def _examples(number: int | None) -> str:
    return "all training examples" if number is None else f"{number:,} training examples"


def _short(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def without_counterpart(paper: Paper, rows: Sequence[Row]) -> list[str]:
    """Return the labels of a run's methods that the paper has no number of."""
    fixed = {(score.method, score.scale) for score in paper.scores if score.method in paper.methods}
    left = [row["method"] for row in rows if not any(_is(paper.methods[name], scale, row) for name, scale in fixed)]
    return sorted(set(left))
