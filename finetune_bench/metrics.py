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
        binary: whether the metric is for two classes only; for more it names one of them: `f1(positive)`.
        of_logits: whether the metric is computed from the classes' logits, not from the class that was chosen.
    """

    heading: str
    kind: Kind
    binary: bool = False
    of_logits: bool = False


METRICS: dict[str, Description] = {
    "accuracy": Description("accuracy", "classification"),
    "f1": Description("F1", "classification", binary=True),
    "f1_macro": Description("macro F1", "classification"),
    "f1_weighted": Description("weighted F1", "classification"),
    "precision": Description("precision", "classification", binary=True),
    "precision_macro": Description("macro precision", "classification"),
    "precision_weighted": Description("weighted precision", "classification"),
    "recall": Description("recall", "classification", binary=True),
    "recall_macro": Description("macro recall", "classification"),
    "recall_weighted": Description("weighted recall", "classification"),
    "balanced_accuracy": Description("balanced accuracy", "classification"),
    "auc": Description("ROC AUC", "classification", of_logits=True),
    "matthews": Description("Matthews corr.", "classification"),
    "pearson": Description("Pearson corr.", "regression"),
    "spearman": Description("Spearman corr.", "regression"),
    "pearson_spearman": Description("Pearson-Spearman corr.", "regression"),
    # Errors with their sign turned, so that here, too, higher is better; 0 is the best.
    "neg_rmse": Description("−RMSE", "regression"),
    "neg_mae": Description("−MAE", "regression"),
}


def named_class(metric: str) -> tuple[str, str | None]:
    """Return the metric's name, and the class that it counts as the positive one where it names one: `f1(positive)`."""
    name, bracket, rest = metric.partition("(")
    return (name.strip(), rest[:-1].strip()) if bracket and rest.endswith(")") else (metric, None)


def compute(name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    """Score predictions; higher is better, as a fraction (0.5, not 50).

    Args:
        name: a key of `METRICS`. `f1`, `precision` and `recall` count class 1 as the positive one; their macro and
            weighted means are over the classes that occur or are predicted, balanced accuracy is over those that occur;
            `auc` is the mean over classes of each against the rest; `pearson_spearman` is the mean of the two.
        predictions: class ids or, for a regression, numbers, (examples,); for `auc` logits, (examples, classes), or
            scores of class 1, (examples,).
        labels: the true values of the same kind, (examples,).

    Returns:
        The score. A correlation is 0 where the predictions or the labels are all alike: it is undefined there, and a
        constant predictor orders nothing. `auc` is 0.5 where all labels are alike, for the same reason. What divides by
        nothing is 0: F1 where class 1 is neither predicted nor present, say.

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
    if METRICS[name].of_logits and predictions.ndim == 1:
        predictions = np.stack([np.zeros(len(predictions)), predictions], axis=1)
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
            described = METRICS[self.config_name]
            value = datasets.Value("int64" if described.kind == "classification" else "float64")
            predicted = datasets.Sequence(datasets.Value("float64")) if described.of_logits else value
            return evaluate.MetricInfo(
                description=described.heading,
                citation="",
                features=datasets.Features({"predictions": predicted, "references": value}),
            )

        # As lists: its NumPy format would round to float32.
        def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
            return {"score": _FUNCTIONS[self.config_name](np.asarray(predictions), np.asarray(references))}

    return Score


def _accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def _of_classes(name: str, average: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """Make a function of F1, precision or recall, of class 1 or as the mean over the classes."""

    def score(predictions: np.ndarray, labels: np.ndarray) -> float:
        from sklearn import metrics

        return float(getattr(metrics, f"{name}_score")(labels, predictions, average=average, zero_division=0.0))

    return score


def _balanced_accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import recall_score

    return float(recall_score(labels, predictions, labels=np.unique(labels), average="macro"))


def _auc(logits: np.ndarray, labels: np.ndarray) -> float:
    from scipy.special import logsumexp
    from sklearn.metrics import roc_auc_score

    areas = []
    for label in range(logits.shape[1]):
        is_of_class = labels == label
        if is_of_class.any() and not is_of_class.all():
            # The log-odds of the class: as its probability, but without ties where that rounds to 0 or 1.
            odds = logits[:, label] - logsumexp(np.delete(logits, label, axis=1), axis=1)
            areas.append(roc_auc_score(is_of_class, odds))
    return float(np.mean(areas)) if areas else 0.5


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


def _neg_rmse(predictions: np.ndarray, labels: np.ndarray) -> float:
    return -float(np.sqrt(np.square(predictions - labels).mean()))


def _neg_mae(predictions: np.ndarray, labels: np.ndarray) -> float:
    return -float(np.abs(predictions - labels).mean())


_FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _of_classes("f1", "binary"),
    "f1_macro": _of_classes("f1", "macro"),
    "f1_weighted": _of_classes("f1", "weighted"),
    "precision": _of_classes("precision", "binary"),
    "precision_macro": _of_classes("precision", "macro"),
    "precision_weighted": _of_classes("precision", "weighted"),
    "recall": _of_classes("recall", "binary"),
    "recall_macro": _of_classes("recall", "macro"),
    "recall_weighted": _of_classes("recall", "weighted"),
    "balanced_accuracy": _balanced_accuracy,
    "auc": _auc,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "pearson_spearman": _pearson_spearman,
    "neg_rmse": _neg_rmse,
    "neg_mae": _neg_mae,
}
