"""`probe` asks of every layer of a trained model what a linear head can still read from it about other tasks.

The encoder is frozen. Each text is read once, and the sentence token's state of every layer is kept; on these, one
linear head per layer is trained, all at once and with the same batches, which comes to the same as training each alone
(HyPe, ACL 2023, appendix C). Layers differ in scale, so that at one learning rate a layer of small states is trained
too little: the check standardises the states and fits each head to its end. Two controls stand beside both: the
untouched checkpoint, and heads that are trained on shuffled labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune_bench import registry
from finetune_bench.analysis import Analysis, Better, Findings, Network, Trained, hash_of
from finetune_bench.errors import UnknownName, UsageError
from finetune_bench.parameters import parameter
from finetune_bench.seeds import derive
from finetune_bench.task import Split, Task, TaskData, limit
from finetune_bench.training.examples import one_pass

PENALTIES = tuple(10.0**power for power in range(-4, 3))
FOLDS = 5
_ITERATIONS = 300
_SEED = 0
_BATCH = 16


def train_heads(features: np.ndarray, labels: np.ndarray, outputs: int, *, lr: float, epochs: int) -> np.ndarray:
    """Train one linear head per layer, all at once, and return them.

    AdamW without decay and warm-up, batches of 16 in an order that is the same for every layer and model, heads that
    begin at zero.

    Args:
        features: (layers, examples, dim), float32.
        labels: (examples,), class ids, or numbers where `outputs` is 1.
        outputs: the number of classes, or 1 for regression.
        lr: the learning rate.
        epochs: passes over the examples.

    Returns:
        (layers, dim + 1, outputs), float32; the last row is the intercept.
    """
    layers, examples, dim = features.shape
    weight = torch.zeros(layers, dim, outputs, requires_grad=True)
    bias = torch.zeros(layers, 1, outputs, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=lr, weight_decay=0.0)
    inputs, targets = torch.from_numpy(features), torch.from_numpy(labels)
    order = torch.Generator().manual_seed(derive(_SEED, "order", "probe"))
    with torch.enable_grad():
        for _ in range(epochs):
            for batch in one_pass(examples, _BATCH, order):
                logits = torch.baddbmm(bias, inputs[:, batch], weight)
                gradients = torch.autograd.grad(_loss(logits, targets[batch]), [weight, bias])
                weight.grad, bias.grad = gradients
                optimizer.step()
    trained: np.ndarray = torch.cat([weight, bias], dim=1).detach().numpy()
    return trained


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum over layers of each head's mean loss, so that no head's gradient depends on another's."""
    layers, batch, outputs = logits.shape
    if outputs == 1:
        return (logits[..., 0] - targets.to(logits.dtype)).square().mean(dim=1).sum()
    flat = torch.nn.functional.cross_entropy(logits.reshape(-1, outputs), targets.repeat(layers), reduction="sum")
    return flat / batch


def predict(heads: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return the outputs of every layer's head, (layers, examples, outputs)."""
    outputs: np.ndarray = features @ heads[:, :-1] + heads[:, -1:]
    return outputs


def ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Return weights and intercept of ridge regression, (XᵀX + λI)⁻¹Xᵀy on centred data; x (examples, dim)."""
    mean_x, mean_y = x.mean(axis=0), float(y.mean())
    centred = x - mean_x
    # The smaller of two systems that have the same solution.
    if len(x) < x.shape[1]:
        weights = centred.T @ np.linalg.solve(centred @ centred.T + penalty * np.eye(len(x)), y - mean_y)
    else:
        weights = np.linalg.solve(centred.T @ centred + penalty * np.eye(x.shape[1]), centred.T @ (y - mean_y))
    return weights, mean_y - float(mean_x @ weights)


def fit(x: np.ndarray, y: np.ndarray, penalty: float, outputs: int) -> Any:
    """Fit a head to its end and return a function from (examples, dim) to outputs, (examples, outputs)."""
    if outputs == 1:
        weights, intercept = ridge(x, y, penalty)
        return lambda features: (features @ weights + intercept)[:, None]
    present = np.unique(y)
    if len(present) == 1:
        return lambda features: np.tile(np.eye(outputs)[present[0]], (len(features), 1))
    from sklearn.linear_model import LogisticRegression  # loading it takes a second

    model = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it needs more iterations, on classes that can be separated
        model.fit(x, y)

    def logits(features: np.ndarray) -> np.ndarray:
        result = np.zeros((len(features), outputs))
        result[:, model.classes_] = model.predict_proba(features)
        return result

    return logits


def folds(labels: np.ndarray, outputs: int) -> np.ndarray:
    """Return the fold of each example, from 0 to 4: round-robin, within each class of a classification."""
    if outputs == 1:
        return np.arange(len(labels)) % FOLDS
    fold = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        fold[inside] = np.arange(len(inside)) % FOLDS
    return fold


def best_penalty(x: np.ndarray, y: np.ndarray, outputs: int) -> float:
    """Choose the penalty by five-fold cross-validation: accuracy, or squared error; the larger of equal ones."""
    fold = folds(y, outputs)
    scores = []
    for penalty in PENALTIES:
        score = 0.0
        for index in range(FOLDS):
            inside = fold == index
            if not inside.any() or inside.all():
                continue
            outcome = fit(x[~inside], y[~inside], penalty, outputs)(x[inside])
            right = outcome.argmax(axis=1) == y[inside] if outputs > 1 else -((outcome[:, 0] - y[inside]) ** 2)
            score += float(right.sum())
        scores.append(score)
    return max(zip(scores, PENALTIES, strict=True))[1]


def _one_thread() -> AbstractContextManager[Any]:
    """Keep linear algebra to one thread: on matrices this small, threads wait for each other most of the time."""
    from threadpoolctl import threadpool_limits  # it comes with scikit-learn

    limits: AbstractContextManager[Any] = threadpool_limits(limits=1)
    return limits


def fitted_scores(task: Task, train: np.ndarray, labels: np.ndarray, test: np.ndarray, gold: np.ndarray) -> list[float]:
    """Return each layer's score of a head that is fitted to the end on standardised states."""
    scores = []
    with _one_thread():
        for of_train, of_test in zip(train.astype(np.float64), test.astype(np.float64), strict=True):
            mean, deviation = of_train.mean(axis=0), of_train.std(axis=0)
            deviation[deviation == 0] = 1.0
            x, unseen = (of_train - mean) / deviation, (of_test - mean) / deviation
            outcome = fit(x, labels, best_penalty(x, labels, task.outputs), task.outputs)(unseen)
            scores.append(task.score(outcome, gold)[task.metrics[0]])
    return scores


class Probe(Analysis):
    """Read other tasks from every layer of the frozen model, by linear heads."""

    name = "probe"
    title = "What layers tell of other tasks"
    about = (
        "Scores from 0 to 1 of linear heads on the frozen model's sentence token, in the other task's first metric, on "
        "its first evaluation split; layer 0 is what enters the first layer. “Before training”: the untouched "
        "checkpoint. “Shuffled labels”: what heads of this size learn from nothing. “Standardised”: on states of unit "
        "spread, fitted to the end with a penalty chosen by cross-validation, on fewer examples. A gain over “before "
        "training” on one curve only is one of scale."
    )

    on: str = parameter("cola+mrpc+rte+stsb", help="the other tasks, joined by '+'")
    train: int = parameter(10000, interval="[10, inf)", help="how many training examples of each, at most")
    checked: int = parameter(
        1000, interval="[0, inf)", help="how many of them the standardised check takes; 0: no check"
    )
    lr: float = parameter(1e-3, interval="(0, inf)", help="learning rate of the heads (HyPe)")
    epochs: int = parameter(3, interval="[1, inf)", help="passes over the examples (HyPe)")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self._targets():
            if name not in registry.names("tasks"):
                raise UnknownName("task", name, registry.names("tasks"), "'finetune-bench list tasks' shows them.")

    def _targets(self) -> list[str]:
        names = [part.strip() for part in self.on.split("+")]
        if not all(names) or len(set(names)) < len(names):
            raise UsageError(f"probe: expected tasks joined by '+', each once, as cola+rte; got '{self.on}'.")
        return names

    def unsupported(self, task: Task) -> str | None:
        """Refuse where the only other task is the model's own."""
        return None if set(self._targets()) - {task.name} else "it has no other task than the model's own; name some"

    def check(self, task: Task, data_root: Path | None, checkpoint: str) -> None:
        """Read the examples of all tasks."""
        for name in self._targets():
            if name != task.name:
                self.examples(name, data_root)

    def examples(self, name: str, data_root: Path | None) -> TaskData:
        """Read the examples of a task, as many as are asked for.

        Raises:
            DataError: they are missing; says where they were looked for.
        """
        data = registry.task(name).load(data_root)
        if len(data.train) > self.train:
            return TaskData(limit(data.train, self.train, name), data.evaluation, data.notes)
        return data

    def measure(self, trained: Trained) -> Findings:
        """Measure the trained and the untouched model on every task but the model's own."""
        layers: dict[str, list[float]] = {}
        numbers: dict[str, float] = {}
        facts: dict[str, Any] = {}
        others = [name for name in self._targets() if name != trained.task.name]
        splits: dict[str, tuple[Split, Split]] = {}
        for name in others:
            data = self.examples(name, trained.data_root)
            splits[name] = data.train, next(iter(data.evaluation.values()))
            train, evaluation = splits[name]
            facts[name] = {"data": data.fingerprint(), "train": len(train), "evaluation": len(evaluation)}
        before_training = self._before_training(trained, splits, [facts[name]["data"] for name in others])
        for name in others:
            curves = self._curves(registry.task(name), *splits[name], trained, trained.model)
            before = before_training[name]
            layers |= {f"{name}{kind}": curve for kind, curve in curves.items()}
            layers |= {f"{name}{kind}, before training": curve for kind, curve in before.items()}
            numbers |= {
                f"{name}: last layer": curves[""][-1],
                f"{name}: last layer before training": before[""][-1],
                f"{name}: change": curves[""][-1] - before[""][-1],
                f"{name}: shuffled labels": curves[", shuffled labels"][-1],
                f"{name}: mean over layers": float(np.mean(curves[""])),
            }
            if self.checked:
                numbers[f"{name}: last layer, standardised"] = curves[", standardised"][-1]
        # The heads of the paper come first: a plot shows the first curves.
        layers = dict(sorted(layers.items(), key=lambda curve: ", " in curve[0].removesuffix(", before training")))
        better: dict[str, Better] = {key: "higher" for key in [*layers, *numbers] if "shuffled" not in key}
        return Findings(numbers=numbers, layers=layers, better=better, facts=facts)

    def _before_training(
        self, trained: Trained, splits: Mapping[str, tuple[Split, Split]], fingerprints: Sequence[str]
    ) -> dict[str, dict[str, list[float]]]:
        """Return the curves of the untouched model by task, without those of shuffled labels."""

        def measure() -> dict[str, dict[str, list[float]]]:
            untouched = trained.untouched()
            return {
                name: self._curves(registry.task(name), *of_task, trained, untouched, shuffled=False)
                for name, of_task in splits.items()
            }

        key = ("probe", self.checked, self.lr, self.epochs, *splits, *fingerprints)
        return trained.before_training(key, measure)

    def _curves(
        self, task: Task, train: Split, test: Split, trained: Trained, network: Network, *, shuffled: bool = True
    ) -> dict[str, list[float]]:
        """Return the scores by layer of each kind of head: as in the paper, on shuffled labels, and of the check."""
        features, unseen = (network.sentence_states(trained.encode(split)) for split in (train, test))
        kind = np.float32 if task.outputs == 1 else np.int64
        labels, gold = np.array(train.labels, dtype=kind), np.array(test.labels, dtype=kind)
        curves = {"": self._scores(task, features, labels, unseen, gold)}
        if shuffled:
            mixed = labels[shuffled_order(train.texts)]
            curves[", shuffled labels"] = self._scores(task, features, mixed, unseen, gold)
        if self.checked:
            taken = np.sort(shuffled_order(train.texts)[: self.checked])
            curves[", standardised"] = fitted_scores(task, features[:, taken], labels[taken], unseen, gold)
        return curves

    def _scores(
        self, task: Task, features: np.ndarray, labels: np.ndarray, unseen: np.ndarray, gold: np.ndarray
    ) -> list[float]:
        heads = train_heads(features, labels, task.outputs, lr=self.lr, epochs=self.epochs)
        return [task.score(outcome, gold)[task.metrics[0]] for outcome in predict(heads, unseen)]


def shuffled_order(texts: Sequence[str]) -> np.ndarray:
    """Return an order of texts that has nothing to do with their labels: by a hash of place and text."""
    hashes = [hash_of(f"{position}\x1f{text}") for position, text in enumerate(texts)]
    return np.argsort(np.array(hashes), kind="stable")
