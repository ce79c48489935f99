"""`similarity` measures the cosines of tokens from layer to layer, within a text and across unrelated texts.

Within a text: the mean cosine over all pairs of its tokens, then the mean over texts (HyPe, ACL 2023, appendix G.1).
Across texts: the mean cosine over all pairs of tokens that are drawn one from each text (the baseline of Ethayarajh,
2019, without a token's pairs with itself). What lies above that baseline is what tokens share because they share a
text. Two more of Ethayarajh's measures are held against the same baseline: the mean cosine of one token's states in
different texts, and that of a token with the mean of its text. A few dimensions of large values can dominate cosines,
so the first is also given after every dimension was standardised by the drawn tokens' mean and standard deviation.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from finetune_bench.analysis import Analysis, Better, Findings, Network, States, Trained, hash_of, some_texts
from finetune_bench.parameters import parameter
from finetune_bench.training.examples import Encoded

_SEED = 2019
FEWEST_CONTEXTS = 5  # texts that a token has to occur in for its self-similarity (Ethayarajh, 2019)
_MOST_TOKENS = 500  # whose sums are held in memory at once, for every layer
WITHIN, ACROSS, ABOVE = "within texts", "across texts", "within − across"
SELF, INTRA = "self-similarity", "intra-sentence similarity"


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


def cosine_with_mean(vectors: Tensor, mask: Tensor) -> Tensor:
    """Return the mean cosine of each text's vectors with their own mean; vectors of length 0 are left out.

    Args:
        vectors: (texts, tokens, dim).
        mask: which tokens count, (texts, tokens).

    Returns:
        (texts,), float64; NaN where no token counts, or their mean is 0.
    """
    units, has_length = unit_vectors(vectors)
    counts = mask & has_length
    n = counts.sum(dim=1)
    mean = (vectors.double() * counts.unsqueeze(-1)).sum(dim=1) / n.clamp(min=1).unsqueeze(-1)
    direction, has_mean = unit_vectors(mean)
    total = ((units @ direction.unsqueeze(-1)).squeeze(-1) * counts).sum(dim=1)
    return torch.where((n > 0) & has_mean, total / n.clamp(min=1), torch.nan)


def repeated_tokens(examples: Encoded, special: Tensor) -> list[int]:
    """Return the ids that occur in five texts or more, at most 500 of them, drawn by a hash of the id."""
    texts_of: Counter[int] = Counter()
    for ids in examples.columns["input_ids"]:
        texts_of.update(set(np.asarray(ids).tolist()))
    left_out = set(special.tolist())
    repeated = [id_ for id_, texts in texts_of.items() if texts >= FEWEST_CONTEXTS and id_ not in left_out]
    return sorted(sorted(repeated, key=lambda id_: hash_of(str(id_)))[:_MOST_TOKENS])


class SelfSimilarity:
    """Add up the states of some tokens, each once a text, where it first stands there.

    Its mean is by layer that of the cosines of a token's states in different texts, over tokens.
    """

    def __init__(self, chosen: list[int], layers: int, width: int) -> None:
        self.row_of = {id_: row for row, id_ in enumerate(chosen)}
        self.sums = torch.zeros(layers, len(chosen), width, dtype=torch.float64)
        self.counts = torch.zeros(layers, len(chosen), dtype=torch.float64)

    def add(self, batch: States) -> None:
        """Add a batch of texts."""
        first: dict[tuple[int, int], int] = {}
        for text, (ids, real) in enumerate(zip(batch.ids.tolist(), batch.mask.tolist(), strict=True)):
            for column, id_ in enumerate(ids):
                if real[column] and id_ in self.row_of:
                    first.setdefault((text, self.row_of[id_]), column)
        texts, columns = [text for text, _ in first], list(first.values())
        rows = torch.tensor([row for _, row in first], dtype=torch.long)
        for layer, states in enumerate(batch.layers):
            units, has_length = unit_vectors(states[texts, columns])
            self.sums[layer].index_add_(0, rows, units.cpu())
            self.counts[layer].index_add_(0, rows, has_length.double().cpu())

    def means(self) -> list[float]:
        """Return the mean by layer; NaN where no token was in two texts."""
        pairs = self.counts * (self.counts - 1)
        cosines = (self.sums.square().sum(dim=-1) - self.counts) / pairs.clamp(min=1)
        return [float(of_layer[known].mean()) for of_layer, known in zip(cosines, pairs > 0, strict=True)]


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
    kinds = (WITHIN, f"{WITHIN}, words only", f"{WITHIN}, standardised", INTRA)
    sums = {kind: _Sums(np.zeros(len(drawn))) for kind in kinds}
    repeated = SelfSimilarity(repeated_tokens(examples, special), len(drawn), drawn.shape[2])
    for batch in network.states(examples):
        repeated.add(batch)
        words = batch.mask & ~torch.isin(batch.ids, special)
        for layer, states in enumerate(batch.layers):
            sums[kinds[0]].add(layer, mean_cosine(states, batch.mask))
            sums[kinds[1]].add(layer, mean_cosine(states, words))
            sums[kinds[2]].add(layer, mean_cosine((states.double() - shift[layer]) / scale[layer], batch.mask))
            sums[kinds[3]].add(layer, cosine_with_mean(states, words))
    everyone = torch.ones(drawn.shape[1], dtype=torch.bool).unsqueeze(0)
    across = [float(mean_cosine(torch.from_numpy(of_layer).unsqueeze(0), everyone)) for of_layer in drawn]
    of_kind = {kind: of_sums.means() for kind, of_sums in sums.items()}
    of_kind[SELF] = repeated.means()

    def above(kind: str) -> list[float]:
        return [value - baseline for value, baseline in zip(of_kind[kind], across, strict=True)]

    # In the order of the report, whose plot shows the first ones.
    return {
        WITHIN: of_kind[WITHIN],
        ACROSS: across,
        ABOVE: above(WITHIN),
        f"{SELF} − across": above(SELF),
        f"{INTRA} − across": above(INTRA),
        f"{WITHIN}, standardised": of_kind[f"{WITHIN}, standardised"],
        f"{WITHIN}, words only": of_kind[f"{WITHIN}, words only"],
        SELF: of_kind[SELF],
        INTRA: of_kind[INTRA],
        "share of the first principal component": [top_share(of_layer) for of_layer in drawn],
    }


class Similarity(Analysis):
    """Measure how alike tokens become from layer to layer, within a text and across texts."""

    name = "similarity"
    version = 2  # self-similarity and intra-sentence similarity came with it
    title = "Similarity of tokens"
    about = (
        "Mean cosine of two tokens in a layer; layer 0 is what enters the first. Within texts: of one text, special "
        "tokens included, without padding (“words only”: without special tokens). Across texts: of two texts, one "
        "token drawn from each. Lower is more isotropic. Self-similarity: of one token in different texts, over tokens "
        "in five texts or more; intra-sentence: of a text's tokens with their mean; “− across”: above that baseline. "
        "Standardised: after each dimension was divided by its spread, so that no few dimensions dominate. “Before "
        "training” is the same checkpoint untouched."
    )

    texts: int = parameter(1000, interval="[2, inf)", help="how many texts are taken, those of evaluation first")

    def measure(self, trained: Trained) -> Findings:
        """Measure the trained model and the untouched one, on the same texts."""
        split = some_texts(trained.data, self.texts)
        examples = trained.encode(split)
        special = torch.tensor(trained.special_ids(), device=trained.model.device)
        of_trained = curves(trained.model, examples, special)
        key = ("similarity", split.fingerprint())
        before = trained.before_training(key, lambda: curves(trained.untouched(), examples, special))
        compared = (WITHIN, ACROSS, ABOVE, f"{SELF} − across", f"{INTRA} − across")
        layers = of_trained | {f"{name}, before training": before[name] for name in compared}
        numbers = {f"last layer, {name}": of_trained[name][-1] for name in compared}
        numbers[f"last layer, {WITHIN}, change by training"] = of_trained[WITHIN][-1] - before[WITHIN][-1]
        lower = [key for key in (*layers, *numbers) if SELF not in key and INTRA not in key]
        better: dict[str, Better] = dict.fromkeys(lower, "lower")
        facts = {"texts": len(split), "data": split.fingerprint()}
        notes = []
        if np.isnan(of_trained[ACROSS]).all():
            notes.append("Across texts nothing is defined: fewer than two texts hold a word.")
        if np.isnan(of_trained[SELF]).all():
            notes.append(f"Self-similarity is undefined: no token occurs in {FEWEST_CONTEXTS} texts.")
        return Findings(numbers=numbers, layers=layers, better=better, notes=notes, facts=facts)
