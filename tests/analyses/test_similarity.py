"""Similarity of tokens: the example worked out by hand, and small computations pair by pair."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from finetune_bench.analyses.similarity import (
    cosine_with_mean,
    curves,
    drawn_tokens,
    mean_cosine,
    repeated_tokens,
    top_share,
)
from finetune_bench.analysis import Network
from finetune_bench.testing.toys import ARCHITECTURES, toy_examples
from finetune_bench.training.examples import Encoded
from tests.tiny_run import tiny_model

CPU = torch.device("cpu")


def network(architecture: str = "bert") -> Network:
    model = tiny_model(architecture)
    return Network(model, dict(model.named_parameters()), CPU, lambda: torch.autocast("cpu", enabled=False))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def pairwise(vectors: np.ndarray) -> float:
    return float(np.mean([cosine(a, b) for a, b in itertools.combinations(vectors.astype(np.float64), 2)]))


def test_the_example_that_was_worked_out_by_hand() -> None:
    vectors = torch.tensor([[[1.0, 0], [0, 1], [1, 1]]])
    assert float(mean_cosine(vectors, torch.ones(1, 3, dtype=torch.bool))) == pytest.approx(0.471405, abs=5e-7)


def test_padding_zero_vectors_and_lone_tokens_are_left_out() -> None:
    vectors = torch.tensor([[[1.0, 0], [0, 1], [1, 1], [5, 5]], [[1, 0], [0, 0], [0, 1], [1, 1]], [[1, 2]] * 4])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    first, second, third = mean_cosine(vectors, mask).tolist()
    assert first == pytest.approx(0.471405, abs=5e-7)
    assert second == pytest.approx(0.471405, abs=5e-7)
    assert np.isnan(third)


def test_the_first_component_of_vectors_along_a_line_is_all() -> None:
    assert top_share(np.outer([1.0, -2, 3], [1.0, 1])) == pytest.approx(1)
    assert top_share(np.eye(4)) == pytest.approx(0.25)
    assert np.isnan(top_share(np.zeros((3, 2))))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_curves_are_those_of_a_computation_text_by_text(architecture: str) -> None:
    examples = toy_examples("classification", 6, left=architecture == "xlnet")
    net = network(architecture)
    measured = curves(net, examples, torch.tensor([0]))
    singles = []
    for index in range(len(examples)):
        inputs = examples.batch([index], CPU).inputs
        with torch.inference_mode():
            hidden = net.model(**inputs, output_hidden_states=True).hidden_states[0]
        hidden = hidden.transpose(0, 1) if architecture == "xlnet" and hidden.shape[1] == 1 else hidden
        singles.append(pairwise(hidden[0].numpy()))
    assert len(measured["within texts"]) == 3
    assert measured["within texts"][0] == pytest.approx(np.mean(singles), abs=2e-5)
    drawn = drawn_tokens(net, examples, torch.tensor([0]))
    assert measured["across texts"] == pytest.approx([pairwise(of_layer) for of_layer in drawn])


def test_a_token_is_held_against_its_other_texts_and_against_the_mean_of_its_own() -> None:
    """Both of Ethayarajh's measures, pair by pair and text by text, with the same baseline taken off."""
    examples, net, special = toy_examples("classification", 40), network(), torch.tensor([0, 7])
    measured = curves(net, examples, special)
    states: dict[int, list[np.ndarray]] = {}
    means = []
    for index in range(len(examples)):
        alone = {name: [column[index]] for name, column in examples.columns.items()}
        (batch,) = net.states(Encoded(alone, examples.padding, False, examples.labels[[index]]))
        ids, last = batch.ids[0].tolist(), batch.layers[-1][0].double().numpy()
        words = [place for place, id_ in enumerate(ids) if id_ not in (0, 7)]
        means.append(np.mean([cosine(last[place], last[words].mean(axis=0)) for place in words]))
        for id_ in dict.fromkeys(ids):
            states.setdefault(id_, []).append(last[ids.index(id_)])
    repeated = {id_: vectors for id_, vectors in states.items() if len(vectors) >= 5 and id_ not in (0, 7)}
    assert repeated_tokens(examples, special) == sorted(repeated)
    assert len(repeated) > 1
    expected = np.mean([pairwise(np.stack(vectors)) for vectors in repeated.values()])
    assert measured["self-similarity"][-1] == pytest.approx(expected, abs=2e-5)
    assert measured["intra-sentence similarity"][-1] == pytest.approx(np.mean(means), abs=2e-5)
    for kind in ("self-similarity", "intra-sentence similarity"):
        above = np.subtract(measured[kind], measured["across texts"])
        assert measured[f"{kind} − across"] == pytest.approx(above)


def test_a_text_is_held_against_its_mean_by_hand() -> None:
    """(1, 0) and (0, 1) lie at 45° to their mean; a token of length 0 and padding are left out."""
    vectors = torch.tensor([[[1.0, 0], [0, 1], [0, 0], [9, 9]], [[0, 0], [0, 0], [1, 1], [1, 1]]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    first, second = cosine_with_mean(vectors, mask).tolist()
    assert first == pytest.approx(0.707107, abs=5e-7)
    assert np.isnan(second)


def test_the_drawn_tokens_do_not_depend_on_the_model() -> None:
    """Layer 0 of BERT is the embeddings', so equal words at equal places tell which tokens were drawn."""
    examples = toy_examples("classification", 6)
    first = drawn_tokens(network(), examples, torch.tensor([0]))
    again = drawn_tokens(network(), examples, torch.tensor([0]))
    assert (first == again).all()
    assert first.shape[:2] == (3, 6)


def test_texts_without_a_word_have_no_baseline() -> None:
    examples = toy_examples("classification", 3)
    measured = curves(network(), examples, torch.arange(60))
    for kind in (
        "across texts",
        "within texts, words only",
        "self-similarity − across",
        "share of the first principal component",
    ):
        assert np.isnan(measured[kind]).all()
    assert np.isfinite(measured["within texts"]).all()
