"""Measure what simple models score on the WordNet tasks: how far words alone go, and a frozen encoder.

    python -m benchmarks.wordnet_baselines
    python -m benchmarks.wordnet_baselines --encoder FOLDER

Without --encoder: TF-IDF of words and pairs of words, with a logistic or a ridge regression; for the tasks with two
texts also on one of them alone, which should be at chance, and the cosine of both. With it: the same on the mean of the
last hidden states of a checkpoint that is not trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from finetune_bench.task import Split
from finetune_bench.tasks.wordnet_tasks import (
    WordNetTask,
    wordnet_isa,
    wordnet_similarity,
    wordnet_topic,
    wordnet_verb_topic,
)


def score(task: WordNetTask, predictions: np.ndarray, labels: Sequence[float]) -> float:
    """Return the first metric of predicted class ids or numbers, in points."""
    truth = np.array(labels)
    if task.kind == "classification":
        return float(100 * np.mean(predictions == truth))
    return 100 * task.score(predictions.reshape(-1, 1), truth)[task.metrics[0]]


def model(task: WordNetTask) -> Any:
    """Return an untrained linear model of the task's kind."""
    return LogisticRegression(C=1.0, max_iter=2000) if task.kind == "classification" else Ridge(alpha=1.0)


def words(task: WordNetTask, train: Split, evaluation: Split) -> dict[str, float]:
    """Return scores of bags of words by what the model sees."""

    def fitted(texts: Callable[[Split], list[str]]) -> float:
        pipeline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), model(task))
        pipeline.fit(texts(train), train.labels)
        return score(task, pipeline.predict(texts(evaluation)), evaluation.labels)

    def marked(split: Split) -> list[str]:
        # The words of the second text are others than those of the first.
        seconds = [" ".join(f"{word}_2" for word in text.split()) for text in split.pairs or ()]
        return [f"{first} {second}" for first, second in zip(split.texts, seconds, strict=True)]

    if train.pairs is None:
        return {"words": fitted(lambda split: list(split.texts))}
    vectorizer = TfidfVectorizer(sublinear_tf=True).fit([*train.texts, *train.pairs])

    def features(split: Split) -> np.ndarray:
        first, second = vectorizer.transform(split.texts), vectorizer.transform(split.pairs or ())
        return np.asarray(first.multiply(second).sum(axis=1))

    cosine = model(task).fit(features(train), train.labels).predict(features(evaluation))
    return {
        "words of the first text": fitted(lambda split: list(split.texts)),
        "words of the second text": fitted(lambda split: list(split.pairs or ())),
        "words of both": fitted(marked),
        "cosine of both": score(task, cosine, evaluation.labels),
    }


def frozen(task: WordNetTask, train: Split, evaluation: Split, encoder: str) -> dict[str, float]:
    """Return scores of linear models on a frozen encoder's mean states."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()

    @torch.no_grad()
    def states(texts: Sequence[str]) -> np.ndarray:
        order = np.argsort([len(text) for text in texts])  # batches of one length need little padding
        vectors = np.zeros((len(texts), network.config.hidden_size))
        for start in range(0, len(texts), 64):
            chosen = order[start : start + 64]
            batch = tokenizer([texts[i] for i in chosen], padding=True, truncation=True, return_tensors="pt")
            mask = batch["attention_mask"][..., None]
            vectors[chosen] = ((network(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)).numpy()
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    def features(split: Split) -> dict[str, np.ndarray]:
        first = states(split.texts)
        if split.pairs is None:
            return {"states": first}
        second = states(split.pairs)
        both = np.concatenate([first, second, np.abs(first - second), first * second], axis=1)
        cosine = (first * second).sum(1, keepdims=True)
        return {"first text": first, "second text": second, "both": both, "cosine": cosine}

    trained, evaluated = features(train), features(evaluation)
    scores = {}
    for name, values in trained.items():
        linear = LogisticRegression(C=0.03, max_iter=2000) if task.kind == "classification" else Ridge(alpha=1000.0)
        pipeline = make_pipeline(StandardScaler(), linear).fit(values, train.labels)
        scores[f"encoder, {name}"] = score(task, pipeline.predict(evaluated[name]), evaluation.labels)
    return scores


def main() -> None:
    """Print a table of scores for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", help="folder of a checkpoint")
    encoder = parser.parse_args().encoder
    for task in (wordnet_topic, wordnet_verb_topic, wordnet_isa, wordnet_similarity):
        data = task.load(None)
        train, evaluation = data.train, data.evaluation["validation"]
        scores = frozen(task, train, evaluation, encoder) if encoder else words(task, train, evaluation)
        for name, value in scores.items():
            print(f"{task.name:20} {name:26} {value:5.1f}", flush=True)


if __name__ == "__main__":
    main()
