"""`transfer` scores a trained model on data that it was not tuned for: other tasks, adversarial and contrast sets.

Classes go by their names, never by their index. Where the set has fewer classes than the model there are two readings,
and both are given: `merge` takes the model's class and then maps it, as the evaluation of HANS does; `sum` adds the
probabilities of the classes that are mapped to one. They differ where a class is on top with less than half.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.special import softmax

from finetune_bench.analysis import Analysis, Better, Findings, Trained
from finetune_bench.errors import DataError, UnknownName, UsageError
from finetune_bench.metrics import compute
from finetune_bench.parameters import parameter
from finetune_bench.stats import estimates
from finetune_bench.task import Split, Task
from finetune_bench.tasks import glue, nli
from finetune_bench.tasks.hub import HubTask

ALL = "all"
ENTAILMENT, OTHER = nli.ENTAILMENT, nli.OTHER
MERGED = dict(nli.TWO_WAY) | {OTHER: OTHER}  # models of three classes, and those that were trained on two
# Their own evaluation splits are among the sets, too, in two classes (HyPe, table 7).
NLI = ("mnli", "mnli2", "snli", "snli2")


@dataclass(frozen=True)
class TransferSet:
    """A TransferSet is one split that models are scored on, and never trained on.

    Attributes:
        data: reads it; its only split.
        sources: the tasks whose models it is made for.
        gold: by the set's class, the class that it counts as; None where classes stay what they are.
        model: by the model's class, the class that it counts as; None for a model of the same classes.
        group: the column that splits the set further; "" for none.
        positive: the class of which F1 and the area under the precision-recall curve are given; "" for neither.
        family: sets of one family are pooled.
    """

    data: HubTask
    sources: tuple[str, ...]
    gold: Mapping[str, str] | None = None
    model: Mapping[str, str] | None = None
    group: str = ""
    positive: str = ""
    family: str = ""


def _adversarial(task: HubTask, config: str, rows: int) -> TransferSet:
    data = dataclasses.replace(
        task, name=config, path="AI-Secure/adv_glue", config=config, rows={"validation": rows}, licence="CC BY-SA 4.0"
    )
    return TransferSet(data, (task.name,), family="AdvGLUE")


def _split(task: HubTask, split: str) -> HubTask:
    return dataclasses.replace(task, rows={split: task.rows[split]})


_HANS = HubTask(
    "hans",
    labels=(ENTAILMENT, OTHER),
    path="jhu-cogsci/hans",
    config="plain_text",
    columns=("premise", "hypothesis"),
    rows={"validation": 30000},
)
_PAWS = HubTask(
    "paws",
    labels=("0", "1"),
    path="google-research-datasets/paws",
    config="labeled_final",
    columns=("sentence1", "sentence2"),
    rows={"test": 8000},
)
_PARAPHRASE = {"1": ENTAILMENT, "0": OTHER}
_DUPLICATE = {"duplicate": ENTAILMENT, "not_duplicate": OTHER}

# By name, in the order of a report. One set may be read in several ways, by what the model was trained on.
SETS: dict[str, tuple[TransferSet, ...]] = {
    "adv_sst2": (_adversarial(glue.sst2, "adv_sst2", 148),),
    "adv_qqp": (_adversarial(glue.qqp, "adv_qqp", 78),),
    "adv_mnli": (_adversarial(glue.mnli, "adv_mnli", 121),),
    "adv_mnli_mismatched": (_adversarial(glue.mnli, "adv_mnli_mismatched", 162),),
    "adv_qnli": (_adversarial(glue.qnli, "adv_qnli", 148),),
    "adv_rte": (_adversarial(glue.rte, "adv_rte", 81),),
    "snli": (TransferSet(_split(nli.snli, "validation"), NLI, MERGED, MERGED),),
    "sick": (TransferSet(_split(nli.sick, "validation"), NLI, MERGED, MERGED),),
    "mnli_matched": (TransferSet(_split(glue.mnli, "validation_matched"), NLI, MERGED, MERGED),),
    "mnli_mismatched": (TransferSet(_split(glue.mnli, "validation_mismatched"), NLI, MERGED, MERGED),),
    "scitail": (
        TransferSet(_split(nli.scitail, "validation"), NLI, {"entails": ENTAILMENT, "neutral": OTHER}, MERGED),
    ),
    "qqp": (TransferSet(_split(glue.qqp, "validation"), NLI, _DUPLICATE, MERGED),),
    "hans": (TransferSet(_HANS, NLI, {ENTAILMENT: ENTAILMENT, OTHER: OTHER}, MERGED, group="heuristic"),),
    "paws": (
        TransferSet(_PAWS, ("qqp",), None, {"not_duplicate": "0", "duplicate": "1"}, positive="1"),
        TransferSet(_PAWS, ("mrpc",), None, {"not_equivalent": "0", "equivalent": "1"}, positive="1"),
        TransferSet(_PAWS, NLI, _PARAPHRASE, MERGED),
    ),
}


def sets_for(task: Task) -> dict[str, TransferSet]:
    """Return the sets that a model of a task can be scored on, by name."""
    return {name: of_name for name, several in SETS.items() for of_name in several if task.name in of_name.sources}


@lru_cache(maxsize=32)
def load(data: HubTask, data_root: Path | None, group: str = "") -> tuple[Split, tuple[str, ...]]:
    """Read a transfer set and the values of the column that splits it further.

    Raises:
        DataError: it is missing or malformed; says where it was looked for.
    """
    split = data.load(data_root).train
    if not group:
        return split, ()
    values = dataclasses.replace(data, columns=(group,)).load(data_root).train.texts
    return split, tuple(values)


def mapped(names: Sequence[str], mapping: Mapping[str, str] | None, what: str) -> list[str]:
    """Return the class that each of some classes counts as.

    Raises:
        UsageError: one of them is in no mapping.
    """
    lowered = [name.lower() for name in names]
    if mapping is None:
        return lowered
    known = {name.lower(): target for name, target in mapping.items()}
    if unmapped := [name for name in lowered if name not in known]:
        raise UsageError(
            f"transfer: no mapping is defined for the class '{unmapped[0]}' of {what}; defined are {', '.join(known)}."
        )
    return [known[name] for name in lowered]


def readings(logits: np.ndarray, counts_as: Sequence[str], classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return what a model predicts among fewer classes, read in both ways.

    Args:
        logits: (examples, the model's classes).
        counts_as: the class that each of the model's classes counts as.
        classes: the classes to choose among.

    Returns:
        By `merge` and by `sum`, indices of `classes`, (examples,); and with that order.
    """
    target = np.array([classes.index(name) for name in counts_as])
    merged: np.ndarray = target[logits.argmax(axis=1)]
    return merged, probabilities(logits, target, len(classes)).argmax(axis=1)


def probabilities(logits: np.ndarray, target: np.ndarray, count: int) -> np.ndarray:
    """Return the probability of each class, those of the model's classes that count as it added up, in float64."""
    shares = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    return np.stack([shares[:, target == index].sum(axis=1) for index in range(count)], axis=1)


def scores_of(
    logits: np.ndarray, model_classes: Sequence[str], gold: np.ndarray, gold_classes: Sequence[str], of: TransferSet
) -> dict[str, float]:
    """Return every score of one set.

    Args:
        logits: (examples, the model's classes).
        model_classes: the names of the model's classes.
        gold: indices of `gold_classes`, (examples,).
        gold_classes: the names of the set's classes.
        of: the set.

    Raises:
        UsageError: a class of the model or of the set is in no mapping.
    """
    counts_as = mapped(model_classes, of.model, "the model")
    gold_as = mapped(gold_classes, of.gold, "the set")
    classes = list(dict.fromkeys(gold_as))
    if strange := sorted(set(counts_as) ^ set(classes)):
        raise UsageError(
            f"transfer: the model's classes ({', '.join(counts_as)}) and the set's ({', '.join(classes)}) are not the "
            f"same; no mapping is defined for '{strange[0]}'."
        )
    truth = np.array([classes.index(name) for name in gold_as])[gold]
    merge, added = readings(logits, counts_as, classes)
    hits, total = int((merge == truth).sum()), len(truth)
    low, high = estimates.clopper_pearson(hits, total)
    scores = {"accuracy": hits / total, "low": low, "high": high}
    if len(set(counts_as)) < len(counts_as):
        scores["accuracy (sum)"] = float((added == truth).mean())
    scores["majority"] = float(np.bincount(truth).max() / total)
    scores["examples"] = float(total)
    if of.positive:
        positive = classes.index(of.positive)
        target = np.array([classes.index(name) for name in counts_as])
        shares = probabilities(logits, target, len(classes))[:, positive]
        scores["F1"] = compute("f1", (merge == positive).astype(int), (truth == positive).astype(int))
        scores["average precision"] = average_precision(shares, truth == positive)
    return scores


def average_precision(shares: np.ndarray, is_positive: np.ndarray) -> float:
    """Return the area under the precision-recall curve, as the mean of precision over the positives; NaN without any.

    Examples of equal probability enter together.
    """
    from sklearn.metrics import average_precision_score  # loading it takes a second

    return float(average_precision_score(is_positive, shares)) if is_positive.any() else math.nan


class Transfer(Analysis):
    """Score the model on other tasks, adversarial and contrast sets, without training on them."""

    name = "transfer"
    title = "Transfer to other data"
    about = (
        "Shares from 0 to 1. Accuracy reads a model of more classes by its class on top, mapped to the set's; “sum” "
        "adds up the probabilities first. Low and high: 95 % interval over examples of one run (Clopper–Pearson), "
        "wide on small sets. Majority: always the set's commonest class; adversarial sets lie below it by design. Of "
        "HANS, read the six parts: a model that always says entailment has 1, 0, 1, 0, 1, 0."
    )

    to: str = parameter(ALL, help="sets joined by '+', as hans+paws; 'all' takes those that are at hand")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self._asked():
            if name not in SETS:
                raise UnknownName("transfer set", name, SETS)

    def _asked(self) -> list[str]:
        return [] if self.to == ALL else [part.strip() for part in self.to.split("+")]

    def unsupported(self, task: Task) -> str | None:
        """Refuse numbers, and tasks that no mapping is defined for."""
        if task.kind == "regression":
            return "a number has no classes that could be mapped"
        known = sets_for(task)
        if not known:
            return f"no mapping of the classes of '{task.name}' to other data is defined"
        if self._asked() and (lacking := [name for name in self._asked() if name not in known]):
            return f"no mapping from '{task.name}' to {' and '.join(lacking)} is defined; defined: {', '.join(known)}"
        return None

    def check(self, task: Task, data_root: Path | None, checkpoint: str) -> None:
        """Read the sets that were named; of 'all', one has to be there."""
        load.cache_clear()  # in a long-lived process, files may have changed
        self._sets(task, data_root)

    def _sets(self, task: Task, data_root: Path | None) -> tuple[dict[str, TransferSet], list[str]]:
        """Return the sets to score on, and what is said of those that are missing.

        Raises:
            DataError: one that was named is missing, or all are.
        """
        known = sets_for(task)
        if self._asked():
            chosen = {name: known[name] for name in self._asked()}
            for of in chosen.values():
                load(of.data, data_root, of.group)
            return chosen, []
        chosen, missing = {}, {}
        for name, of in known.items():
            try:
                load(of.data, data_root, of.group)
                chosen[name] = of
            except DataError as error:
                missing[name] = str(error)
        if not chosen:
            raise DataError(f"transfer: none of {', '.join(known)} is at hand. {next(iter(missing.values()))}")
        return chosen, [f"transfer left out {', '.join(missing)}, whose data are not at hand."] if missing else []

    def measure(self, trained: Trained) -> Findings:
        """Score every set, and pool those of a family."""
        chosen, notes = self._sets(trained.task, trained.data_root)
        numbers: dict[str, float] = {}
        arrays: dict[str, np.ndarray] = {}
        facts: dict[str, str] = {}
        families: dict[str, list[dict[str, float]]] = {}
        for name, of in chosen.items():
            split, parts = load(of.data, trained.data_root, of.group)
            logits = trained.model.logits(trained.encode(split))
            gold = np.array(split.labels)
            scores = scores_of(logits, trained.task.labels, gold, of.data.labels, of)
            numbers |= {f"{name}: {key}": value for key, value in scores.items()}
            if parts:
                numbers |= _parts(name, logits, (gold, parts), trained.task.labels, of)
                notes += _balance(name, gold, parts)
            if of.family:
                families.setdefault(of.family, []).append(scores)
            if split.is_subset:
                notes.append(f"{name} holds {len(split)} rows; {split.published} were published.")
            arrays |= {f"{name}.logits": logits, f"{name}.labels": gold}
            facts[name] = split.fingerprint()
        for family, of_family in families.items():
            if len(of_family) > 1:
                numbers |= {f"{family}, pooled: {key}": value for key, value in _pooled(of_family).items()}
        better: dict[str, Better] = {
            key: "higher" for key in numbers if key.rpartition(": ")[2].startswith(("accuracy", "F1", "average"))
        }
        return Findings(numbers=numbers, better=better, arrays=arrays, notes=notes, facts=facts)


def _parts(
    name: str, logits: np.ndarray, cut: tuple[np.ndarray, Sequence[str]], classes: Sequence[str], of: TransferSet
) -> dict[str, float]:
    """Return the accuracy of each part × gold class, in both readings; `cut` has gold class and part by example."""
    gold, parts = cut
    counts_as = mapped(classes, of.model, "the model")
    gold_as = mapped(of.data.labels, of.gold, "the set")
    targets = list(dict.fromkeys(gold_as))
    merge, added = readings(logits, counts_as, targets)
    numbers = {}
    for part in dict.fromkeys(parts):
        for index, label in enumerate(of.data.labels):
            inside = (np.array(parts) == part) & (gold == index)
            if inside.any():
                truth = targets.index(gold_as[index])
                numbers[f"{name}, {part}, {label}: accuracy"] = float((merge[inside] == truth).mean())
                numbers[f"{name}, {part}, {label}: accuracy (sum)"] = float((added[inside] == truth).mean())
    return numbers


def _balance(name: str, gold: np.ndarray, parts: Sequence[str]) -> list[str]:
    """Return what is to be said where the parts are not balanced: then their mean is not the overall accuracy."""
    sizes = {(part, label): 0 for part in dict.fromkeys(parts) for label in np.unique(gold).tolist()}
    for part, label in zip(parts, gold.tolist(), strict=True):
        sizes[part, label] += 1
    if len(set(sizes.values())) == 1:
        return []
    return [f"The parts of {name} differ in size, so the mean of their accuracies is not that of the whole."]


def _pooled(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the accuracy over all examples of several sets, with its interval and that of their majorities."""
    total = sum(round(of["examples"]) for of in scores)
    hits = sum(round(of["accuracy"] * of["examples"]) for of in scores)
    low, high = estimates.clopper_pearson(hits, total)
    majority = sum(of["majority"] * of["examples"] for of in scores) / total
    return {"accuracy": hits / total, "low": low, "high": high, "majority": majority, "examples": float(total)}
