"""`compute` gives the scores that tasks are compared by, from arrays of predictions and labels.

The values pass through `evaluate` (checked and counted by its `Metric` class), the arithmetic is that of scikit-learn
and scipy. Nothing is downloaded, and nothing is left on the disk. Importing this module is cheap: `evaluate`, which
takes seconds, is loaded by the first call of `compute`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from finetune_bench.errors import UnknownName

Kind = Literal["classification", "regression"]

# Below this spread, relative to the mean, the values differ by the rounding of float64 only.
ROUNDING = 1e-13


@dataclass(frozen=True)
class Description:
    """This is what a report needs to know about a metric.

    Attributes:
        heading: the metric's name above a column.
        kind: the kind of task that the metric scores.
        binary: whether the metric is for two classes only.
    """

    heading: str
    kind: Kind
    binary: bool = False


METRICS: dict[str, Description] = {
    "accuracy": Description("accuracy", "classification"),
    "f1": Description("F1", "classification", binary=True),
    "matthews": Description("Matthews corr.", "classification"),
    "pearson": Description("Pearson corr.", "regression"),
    "spearman": Description("Spearman corr.", "regression"),
    "pearson_spearman": Description("Pearson-Spearman corr.", "regression"),
}


def compute(name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    """Score predictions; higher is better, as a fraction (0.5, not 50).

    Args:
        name: a key of `METRICS`. `f1` counts class 1 as the positive one; `pearson_spearman` is the mean of the two.
        predictions: class ids or, for the correlations, numbers, (examples,).
        labels: the true values of the same kind, (examples,).

    Returns:
        The score. A correlation is 0 where the predictions or the labels are all alike: it is undefined there, and a
        constant predictor orders nothing. F1 is 0 where class 1 is neither predicted nor present.

    Raises:
        UnknownName: no such metric.
        ValueError: no examples, another number of predictions than of labels, or a value that is not finite.
    """
    if name not in METRICS:
        raise UnknownName("metric", name, METRICS)
    if len(predictions) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"Expected as many predictions as labels, at least one; got {len(predictions)} and {len(labels)}."
        )
    if not (np.isfinite(predictions).all() and np.isfinite(labels).all()):
        raise ValueError(f"The metric '{name}' needs finite predictions and labels; some are NaN or infinite.")
    # A fresh object for every call: evaluate's metrics hold the values that are being scored, so a shared one would mix
    # those of two threads. It also creates a folder, even when it keeps everything in memory; that one is let vanish.
    with TemporaryDirectory(prefix="finetune-bench-") as folder:
        metric = _metric_class()(config_name=name, keep_in_memory=True, cache_dir=folder, seed=0)
        result = metric.compute(predictions=predictions, references=labels)
    return float(result["score"])


@cache
def _metric_class() -> Any:
    import datasets
    import evaluate

    class Score(evaluate.Metric):  # type: ignore[misc]
        """The metric of `METRICS` that its configuration names."""

        def _info(self) -> Any:
            value = datasets.Value("int64" if METRICS[self.config_name].kind == "classification" else "float64")
            return evaluate.MetricInfo(
                description=METRICS[self.config_name].heading,
                citation="",
                features=datasets.Features({"predictions": value, "references": value}),
            )

        # As lists: its NumPy format would round to float32.
        def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
            return {"score": _FUNCTIONS[self.config_name](np.asarray(predictions), np.asarray(references))}

    return Score


def _accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def _f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, pos_label=1, average="binary", zero_division=0.0))


def _matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _is_constant(values: np.ndarray) -> bool:
    mean = values.mean()
    return bool(np.linalg.norm(values - mean) <= ROUNDING * abs(mean))


def _pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    if _is_constant(predictions) or _is_constant(labels):
        return 0.0
    return float(pearsonr(predictions, labels)[0])


def _spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if _is_constant(predictions) or _is_constant(labels):
        return 0.0
    return float(spearmanr(predictions, labels)[0])


def _pearson_spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    return (_pearson(predictions, labels) + _spearman(predictions, labels)) / 2


_FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "pearson_spearman": _pearson_spearman,
}
