"""Settings are chosen here by their means on held-out data, and those whose runs learned nothing are passed over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Set
from typing import TypeAlias

from finetune_bench.store.row import Row
from finetune_bench.task import HELD_OUT

# The label of a method with its parameters, and a learning rate.
Setting: TypeAlias = tuple[str, float]
# Means that differ by less, in points, are the same: sums of the same scores in another order differ by rounding.
_SAME = 1e-9


def best_settings(means: Mapping[Setting, float]) -> list[Setting]:
    """Return the settings with the highest mean in points, in their order; several where they tie."""
    highest = max(means.values())
    return [setting for setting, mean in means.items() if mean >= highest - _SAME]


def unfinished_seeds(rows: Collection[Row], missing: Set[str], asked: Set[str]) -> list[int]:
    """Return the seeds with fewer runs, however they ended, than another seed: a command that was stopped left them.

    Args:
        rows: runs of a task.
        missing: ids of the runs that have no result yet; where there are none, every seed is finished.
        asked: ids of all runs that the command asks for; others don't count.
    """
    runs = Counter(row["seed"] for row in rows if row["id"] in asked)
    return sorted(seed for seed, number in runs.items() if number < max(runs.values())) if missing else []


def those_that_learned(runs: Mapping[Setting, Collection[Row]]) -> list[Setting]:
    """Return the settings of which more than half of the runs learned something; all of them where none did.

    By the F1 score of a task of which most examples are positive, as MRPC, the same answer to everything is hard to
    beat: the best mean on a few hundred held-out examples can be that of runs that collapsed. Only training data is
    looked at, so the choice stays honest.
    """
    able = [setting for setting, of_setting in runs.items() if 2 * sum(map(is_idle, of_setting)) < len(of_setting)]
    return able or list(runs)


def is_idle(row: Row) -> bool:
    """Return whether a run learned nothing: its loss hardly moved, or one answer to all held-out data is as good."""
    training = row.get("training")
    if training and training.get("hardly_moved"):
        return True
    scores, constant = row["metrics"].get(HELD_OUT, {}), row["majority"].get(HELD_OUT, {})
    pairs = [(score, constant.get(metric)) for metric, score in scores.items()]
    return bool(pairs) and all(score is not None and bound is not None and score <= bound for score, bound in pairs)
