"""Read what a paper published: its scores with their deviations, its claims, its recipe, and the slips in its tables.

A paper is a folder beside this file:

    scores.csv          one printed number a line; an average stands beside the scores that it is of
    claims.toml         the gains that its text tells of
    paper.toml          its recipe, its methods in this package's terms, its memory, its pictures
    discrepancies.csv   where it, or its code, says two things

Scores and deviations are in points.
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from finetune_bench.errors import UnknownName

AVERAGES = ("average", "average_all")
# An average of gains, printed beside an average of scores.
GAIN = "average_gain"


@dataclass(frozen=True)
class Score:
    """A score is one printed number of a table.

    Attributes:
        table: the number of the table.
        model: the checkpoint that was tuned, by its name on the hub.
        method: the row's name.
        scale: of the noise, where the table fixes it; None where it was chosen or there is none.
        task: the task, as it is called here; `average` and `average_all` for the mean of a row.
        trained_on: the task that was trained on, where it is another one; "" else.
        examples: training examples; None for all.
        evaluated_on: "dev", "hidden test", or "server" for a test set whose labels are not public.
        metric: the score's name.
        mean: in points.
        sd: the standard deviation over runs, in points; None where it isn't printed or was lost.
        runs: how many runs the mean is of; None where that isn't known.
        note: what else there is to know.
    """

    table: int
    model: str
    method: str
    scale: float | None
    task: str
    trained_on: str
    examples: int | None
    evaluated_on: str
    metric: str
    mean: float
    sd: float | None
    runs: int | None
    note: str


@dataclass(frozen=True)
class Claim:
    """A claim is a gain that the paper's text tells of.

    Attributes:
        name: a short name.
        source: where it stands.
        table: the table that it rests on.
        model: the checkpoint.
        method: the method that gains.
        than: the method that it is compared with.
        tasks: the tasks that the gain is the mean of.
        gain: in points, from the table.
        printed: what the text says where that is another number; else None.
        scale: of `method`, where it is fixed.
        than_scale: of `than`, where it is fixed.
    """

    name: str
    source: str
    table: int
    model: str
    method: str
    than: str
    tasks: tuple[str, ...]
    gain: float
    printed: float | None = None
    scale: float | None = None
    than_scale: float | None = None


@dataclass(frozen=True)
class Memory:
    """A memory is the printed size of a training run with a method, in GB."""

    method: str
    gigabytes: float


@dataclass(frozen=True)
class Discrepancy:
    """A discrepancy is a place where a paper, or its code, says two things.

    Attributes:
        where: the tables or sections.
        quantity: what it is about.
        printed: the one value.
        other: the other value.
        note: what follows.
    """

    where: str
    quantity: str
    printed: str
    other: str
    note: str


@dataclass(frozen=True)
class Paper:
    """A paper has published scores and claims, and says how it trained.

    Attributes:
        name: the name of its folder.
        title: its title.
        source: where it appeared.
        scores: every printed number.
        claims: its claims.
        memory: its sizes in memory.
        discrepancies: its slips.
        methods: of each method's name in the tables, the stack here: of each part its name, and the values of its
            parameters that the paper used or tried; a parameter that isn't named may have any value.
        learning_rates: the learning rates of its search.
        searched: how many settings a chosen number is the best of, by the method's name; the others' number is that of
            the learning rates.
        figures: of each picture without printed numbers, what it shows.
        recipe: how it trained, as the fields of a recipe without the learning rate.
        recounted: of tasks whose printed accuracies are whole counts of one of two sets, the sets' numbers of examples:
            `dev` and `hidden_test`.
        recipes_of: where it trained otherwise: `models`, `tasks`, and the fields of the `recipe` that differ there.
    """

    name: str
    title: str
    source: str
    scores: tuple[Score, ...]
    claims: tuple[Claim, ...]
    memory: tuple[Memory, ...]
    discrepancies: tuple[Discrepancy, ...]
    methods: Mapping[str, tuple[Mapping[str, Any], ...]]
    learning_rates: tuple[float, ...]
    searched: Mapping[str, int]
    figures: Mapping[str, str]
    recounted: Mapping[str, Mapping[str, int]]
    recipe: Mapping[str, Any]
    recipes_of: tuple[Mapping[str, Any], ...]

    def recipe_of(self, model: str, task: str) -> dict[str, Any]:
        """Return how the paper trained a checkpoint on a task: the fields of a recipe, without the learning rate."""
        recipe = dict(self.recipe)
        for special in self.recipes_of:
            if model in special["models"] and task in special["tasks"]:
                recipe |= special["recipe"]
        if "steps" in recipe:
            del recipe["epochs"]
        return recipe

    def settings_of(self, score: Score) -> int:
        """Return how many settings a number is the best of, on the scores that are reported."""
        fixed = score.scale is not None
        return len(self.learning_rates) if fixed else self.searched.get(score.method, len(self.learning_rates))

    def find(self, table: int, model: str, method: str, task: str, scale: float | None = None) -> Score | None:
        """Return the printed score of a table's cell; None where it has none."""
        for score in self.scores:
            if (score.table, score.method, score.task, score.scale) != (table, method, task, scale):
                continue
            if score.model in (model, f"{model}-mnli"):  # Table 4 starts some tasks from there
                return score
        return None


def paper_names() -> list[str]:
    """Return the names of the papers whose numbers are here."""
    return sorted(entry.name for entry in files(__package__).iterdir() if entry.joinpath("scores.csv").is_file())


@cache
def load_paper(name: str) -> Paper:
    """Return what a paper published.

    Raises:
        UnknownName: there is no such paper here.
    """
    if name not in paper_names():
        raise UnknownName("paper", name, paper_names())
    folder = files(__package__).joinpath(name)
    facts = tomllib.loads(folder.joinpath("paper.toml").read_text("utf-8"))
    claims = tomllib.loads(folder.joinpath("claims.toml").read_text("utf-8"))["claim"]
    return Paper(
        name=name,
        title=facts["title"],
        source=facts["source"],
        scores=tuple(_score(line) for line in _lines(name, "scores.csv")),
        claims=tuple(Claim(**claim | {"tasks": tuple(claim["tasks"])}) for claim in claims),
        memory=tuple(Memory(**entry) for entry in facts["memory"]),
        discrepancies=tuple(Discrepancy(**line) for line in _lines(name, "discrepancies.csv")),
        methods={method: tuple(parts) for method, parts in facts["methods"].items()},
        learning_rates=tuple(facts["searched"]["learning_rates"]),
        searched=facts["searched"]["settings"],
        figures={figure["name"]: figure["shows"] for figure in facts["figure"]},
        recounted=facts["recounted"],
        recipe=facts["recipe"],
        recipes_of=tuple(facts["recipe_of"]),
    )


def _lines(name: str, file: str) -> list[dict[str, str]]:
    return list(csv.DictReader(files(__package__).joinpath(name, file).read_text("utf-8").splitlines()))


def _score(line: dict[str, str]) -> Score:
    return Score(
        table=int(line["table"]),
        model=line["model"],
        method=line["method"],
        scale=float(line["scale"]) if line["scale"] else None,
        task=line["task"],
        trained_on=line["trained_on"],
        examples=int(line["examples"]) if line["examples"] else None,
        evaluated_on=line["evaluated_on"],
        metric=line["metric"],
        mean=float(line["mean"]),
        sd=float(line["sd"]) if line["sd"] else None,
        runs=int(line["runs"]) if line["runs"] else None,
        note=line["note"],
    )
