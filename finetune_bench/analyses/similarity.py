"""`similarity` measures the cosines of tokens from layer to layer, within a text and across unrelated texts.

Within a text: the mean cosine over all pairs of its tokens, then the mean over texts (HyPe, ACL 2023, appendix G.1).
Across texts: the mean cosine over all pairs of tokens that are drawn one from each text (the baseline of Ethayarajh,
2019, without a token's pairs with itself). What lies above that baseline is what tokens share because they share a
text. A few dimensions of large values can dominate cosines, so both are also given after every dimension was
standardised by the drawn tokens' mean and standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from finetune_bench.analysis import Analysis, Better, Findings, Network, Trained, some_texts
from finetune_bench.parameters import parameter
from finetune_bench.training.examples import Encoded

_SEED = 2019


def unit_vectors(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors of length 1 along the last dimension, in float64, and which of them had a length at all."""
    vectors = vectors.double()
    lengths = vectors.norm(dim=-1, keepdim=True)
    has_length = lengths > 0
    return torch.where(has_length, vectors / torch.where(has_length, lengths, 1.0), 0.0), has_length.squeeze(-1)


def mean_cosine(vectors: Tensor, mask: Tensor) -> Tensor:
    """Return the mean cosine over all pairs of vectors of each text; vectors of length 0 are left out.

    Args:
        vectors: (texts, tokens, dim).
        mask: which tokens count, (texts, tokens).

    Returns:
        (texts,), float64; NaN where fewer than two tokens count.
    """
    units, has_length = unit_vectors(vectors)
    counts = mask & has_length
    n = counts.sum(dim=1).double()
    total = (units * counts.unsqueeze(-1)).sum(dim=1).square().sum(dim=-1)
    return torch.where(n >= 2, (total - n) / (n * (n - 1)).clamp(min=1), torch.nan)


def top_share(vectors: np.ndarray) -> float:
    """Return the first principal component's share of the sum of squares of (vectors, dim), without centring."""
    if not len(vectors):
        return float("nan")
    squares = np.linalg.svd(np.asarray(vectors, dtype=np.float64), compute_uv=False) ** 2
    return float(squares[0] / squares.sum()) if squares.sum() > 0 else float("nan")


@dataclass
class _Sums:
    """What is added up over the texts, by layer: the mean cosines and how many texts had one."""

    total: np.ndarray
    texts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.texts = np.zeros_like(self.total)

    def add(self, layer: int, cosines: Tensor) -> None:
        known = cosines[~cosines.isnan()]
        self.total[layer] += float(known.sum())
        self.texts[layer] += len(known)

    def means(self) -> list[float]:
        with np.errstate(invalid="ignore"):
            return [float(value) for value in self.total / np.where(self.texts > 0, self.texts, np.nan)]


def drawn_tokens(network: Network, examples: Encoded, special: Tensor) -> np.ndarray:
    """Return the states of one token of every text, the same for every model, (layers + 1, texts, dim), float32.

    Special tokens and padding are never drawn; a text that holds nothing else gives none.
    """
    shares = np.random.default_rng(_SEED).random(len(examples))
    parts: list[tuple[list[int], np.ndarray]] = []
    for batch in network.states(examples):
        words = batch.mask & ~torch.isin(batch.ids, special)
        kept = [row for row in range(len(batch.positions)) if bool(words[row].any())]
        tokens = []
        for row in kept:
            places = words[row].nonzero().flatten()
            tokens.append(int(places[int(shares[batch.positions[row]] * len(places))]))
        taken = torch.stack([layer[kept, tokens] for layer in batch.layers]).cpu().numpy()
        parts.append(([batch.positions[row] for row in kept], taken))
    order = np.argsort([position for positions, _ in parts for position in positions])
    drawn: np.ndarray = np.concatenate([taken for _, taken in parts], axis=1)[:, order]
    return drawn


def curves(network: Network, examples: Encoded, special: Tensor) -> dict[str, list[float]]:
    """Return every measure of similarity by layer."""
    drawn = drawn_tokens(network, examples, special)
    mean, deviation = (np.full((len(drawn), drawn.shape[2]), np.nan) for _ in range(2))
    if drawn.shape[1]:
        mean, deviation = drawn.astype(np.float64).mean(axis=1), drawn.astype(np.float64).std(axis=1)
        deviation[deviation == 0] = 1.0
    device = network.device
    shift, scale = torch.from_numpy(mean).to(device), torch.from_numpy(deviation).to(device)
    kinds = ("within texts", "within texts, words only", "within texts, standardised")
    sums = {kind: _Sums(np.zeros(len(drawn))) for kind in kinds}
    for batch in network.states(examples):
        words = batch.mask & ~torch.isin(batch.ids, special)
        for layer, states in enumerate(batch.layers):
            sums[kinds[0]].add(layer, mean_cosine(states, batch.mask))
            sums[kinds[1]].add(layer, mean_cosine(states, words))
            sums[kinds[2]].add(layer, mean_cosine((states.double() - shift[layer]) / scale[layer], batch.mask))
    result = {kind: of_kind.means() for kind, of_kind in sums.items()}
    everyone = torch.ones(drawn.shape[1], dtype=torch.bool).unsqueeze(0)
    result["across texts"] = [
        float(mean_cosine(torch.from_numpy(of_layer).unsqueeze(0), everyone)) for of_layer in drawn
    ]
    result["within − across"] = [
        within - across for within, across in zip(result["within texts"], result["across texts"], strict=True)
    ]
    result["share of the first principal component"] = [top_share(of_layer) for of_layer in drawn]
    return result


class Similarity(Analysis):
    """Measure how alike tokens become from layer to layer, within a text and across texts."""

    name = "similarity"
    title = "Similarity of tokens"
    about = (
        "Mean cosine of two tokens in a layer; layer 0 is what enters the first. Within texts: of one text, special "
        "tokens included, without padding (“words only”: without special tokens). Across texts: of two texts, one "
        "token drawn from each. Lower is more isotropic. Standardised: after each dimension was divided by its spread, "
        "so that no few dimensions dominate. “Before training” is the same checkpoint untouched."
    )

    texts: int = parameter(1000, interval="[2, inf)", help="how many texts are taken, those of evaluation first")

    def measure(self, trained: Trained) -> Findings:
        """Measure the trained model and the untouched one, on the same texts."""
        split = some_texts(trained.data, self.texts)
        examples = trained.encode(split)
        special = torch.tensor(trained.special_ids(), device=trained.model.device)
        of_trained = curves(trained.model, examples, special)
        before = curves(trained.untouched(), examples, special)
        layers = of_trained | {
            f"{name}, before training": before[name] for name in ("within texts", "across texts", "within − across")
        }
        numbers = {
            f"last layer, {name}": of_trained[name][-1] for name in ("within texts", "across texts", "within − across")
        }
        numbers["last layer, within texts, change by training"] = (
            of_trained["within texts"][-1] - before["within texts"][-1]
        )
        better: dict[str, Better] = dict.fromkeys([*layers, *numbers], "lower")
        facts = {"texts": len(split), "data": split.fingerprint()}
        is_undefined = bool(np.isnan(of_trained["across texts"]).all())
        notes = ["Across texts nothing is defined: fewer than two texts hold a word."] if is_undefined else []
        return Findings(numbers=numbers, layers=layers, better=better, notes=notes, facts=facts)
