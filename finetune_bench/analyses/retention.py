"""`retention` measures how much of what a model was pre-trained for is left after fine-tuning.

Where the checkpoint has its language-modelling head, the tuned body gets it back and predicts words: the next one
(decoders), or those that were masked. Loss after minus loss before, text by text, on the task's own texts and on
foreign ones (glosses of a dictionary). Where it has no such head, frozen probes of other tasks take its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune_bench import registry
from finetune_bench.analyses.probe import Probe
from finetune_bench.analysis import Analysis, Better, Findings, Network, Trained, by_length, hash_of, some_texts
from finetune_bench.errors import FinetuneBenchError, UsageError
from finetune_bench.model import language
from finetune_bench.parameters import parameter
from finetune_bench.stats import estimates
from finetune_bench.task import Split, Task
from finetune_bench.training.examples import Encoded

MASKED_SHARE = 0.15
_FOREIGN = "wordnet_topic"  # a task whose texts are a dictionary's


@dataclass(frozen=True)
class Losses:
    """The Losses of some texts are sums over their predicted tokens.

    Attributes:
        total: in nats, (texts,).
        tokens: how many were predicted, (texts,).
    """

    total: np.ndarray
    tokens: np.ndarray

    def level(self) -> float:
        """Return the mean over all predicted tokens; NaN where there is none."""
        return float(self.total.sum() / self.tokens.sum()) if self.tokens.sum() else math.nan

    def by_text(self) -> np.ndarray:
        """Return the mean of each text, NaN where nothing was predicted."""
        with np.errstate(invalid="ignore"):
            means: np.ndarray = self.total / np.where(self.tokens > 0, self.tokens, np.nan)
        return means


def causal_losses(network: Network, examples: Encoded) -> Losses:
    """Return the losses of predicting each real token but the first from those before it."""
    total, tokens = np.zeros(len(examples)), np.zeros(len(examples))
    for positions in by_length(examples):
        inputs = examples.batch(positions, network.device).inputs
        real = inputs["attention_mask"].bool()
        counts = real[:, 1:] & real[:, :-1]
        losses = _cross_entropy(network, inputs, shift=1)(inputs["input_ids"][:, 1:])
        total[positions] = (losses * counts).sum(dim=1).cpu().numpy()
        tokens[positions] = counts.sum(dim=1).cpu().numpy()
    return Losses(total, tokens)


def masked_losses(network: Network, examples: Encoded, special: list[int], mask_id: int) -> Losses:
    """Return the losses of predicting 15 % of the tokens, all of which are replaced by the mask token."""
    total, tokens = np.zeros(len(examples)), np.zeros(len(examples))
    chosen = [masked_positions(ids, special) for ids in examples.columns["input_ids"]]
    for positions in by_length(examples):
        inputs = examples.batch(positions, network.device).inputs
        ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
        masked = torch.zeros_like(real)
        for row, position in enumerate(positions):
            places = real[row].nonzero().flatten()
            masked[row, places[torch.from_numpy(chosen[position]).to(places.device)]] = True
        hidden = inputs | {"input_ids": ids.masked_fill(masked, mask_id)}
        losses = _cross_entropy(network, hidden, shift=0)(ids)
        total[positions] = (losses * masked).sum(dim=1).cpu().numpy()
        tokens[positions] = masked.sum(dim=1).cpu().numpy()
    return Losses(total, tokens)


def masked_positions(ids: np.ndarray, special: list[int]) -> np.ndarray:
    """Return the positions to mask of a text: 15 % of those that hold no special token, drawn by a hash of the text.

    A text with any such position has one masked at least; the same text always has the same.
    """
    words = np.flatnonzero(~np.isin(ids, special))
    count = max(1, round(MASKED_SHARE * len(words))) if len(words) else 0
    text = ",".join(map(str, np.asarray(ids).tolist()))
    drawn = sorted(words.tolist(), key=lambda position: hash_of(f"{text}:{position}"))[:count]
    return np.array(sorted(drawn), dtype=np.int64)


def _cross_entropy(network: Network, inputs: dict[str, Tensor], shift: int) -> Any:
    """Return a function from targets, (batch, seq − shift), to the loss of each, float64."""
    with torch.inference_mode(), network.autocast():
        logits = network.model(**inputs).logits.float()
    logits = logits[:, : logits.shape[1] - shift]

    def losses(targets: Tensor) -> Tensor:
        flat = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return flat.reshape(targets.shape).double()

    return losses


class Retention(Analysis):
    """Measure how much of its pre-training a model keeps: language-modelling loss, or frozen probes."""

    name = "retention"
    title = "What is kept of pre-training"
    about = (
        "Language-modelling loss in nats per predicted token, before and after training, and its change: the mean over "
        "texts of after minus before, with the 95 % interval over texts of one run (low, high). Perplexity: exp(loss). "
        "Own: texts of the task; foreign: glosses of WordNet. A checkpoint without a language-modelling head is probed "
        "instead: change of a linear head's score on another task, on the last layer. The plane holds the task's gain "
        "against what is kept, both against the reference: only a method whose intervals both lie above 0 is ahead in "
        "both."
    )

    texts: int = parameter(500, interval="[2, inf)", help="how many texts of each kind")
    output: str = parameter(
        "as_tied",
        choices=("as_tied", "pretrained"),
        help="of a model whose output matrix is its embeddings: the tuned one, or the pre-trained one kept apart",
    )
    on: str = parameter("cola+rte", help="tasks that are probed where there is no language-modelling head")

    def __post_init__(self) -> None:
        super().__post_init__()
        Probe(on=self.on)

    def check(self, task: Task, data_root: Path | None, checkpoint: str) -> None:
        """Read the tasks that are probed, where the checkpoint has no language-modelling head."""
        if language.kind_of(checkpoint) is None:
            self._probe(task).check(task, data_root, checkpoint)

    def _probe(self, task: Task) -> Probe:
        probe = Probe(on=self.on, train=2000, checked=0)
        if reason := probe.unsupported(task):
            raise UsageError(f"retention: the model has no language-modelling head, and for a probe {reason}.")
        return probe

    def measure(self, trained: Trained) -> Findings:
        """Measure the language-modelling loss before and after, or probe."""
        kind = language.kind_of(trained.checkpoint_name)
        if kind is None:
            return self._probed(trained)
        after = language.load(trained.checkpoint_name, kind)
        language.take_body(after, trained.model.params, keep_output=self.output == "pretrained")
        tuned = self._network(after, trained)
        numbers: dict[str, float] = {}
        facts: dict[str, Any] = {"kind": kind, "output": self._output_of(after)}
        notes: list[str] = []
        sets = self._text_sets(trained, notes)
        examples = {name: trained.encode(split) for name, split in sets.items()}
        fingerprints = {name: split.fingerprint() for name, split in sets.items()}

        def losses_before() -> dict[str, Losses]:
            untouched = self._network(language.load(trained.checkpoint_name, kind), trained)
            return {name: self._losses(untouched, of_set, kind, trained) for name, of_set in examples.items()}

        before = trained.before_training(("retention", *fingerprints.items()), losses_before)
        for name, split in sets.items():
            numbers |= _compared(name, before[name], self._losses(tuned, examples[name], kind, trained))
            tokens = int(before[name].tokens.sum())
            facts[name] = {"texts": len(split), "data": fingerprints[name], "tokens": tokens}
        better: dict[str, Better] = {
            key: "lower" for key in numbers if key.rpartition(": ")[2] in ("after", "change", "perplexity after")
        }
        return Findings(numbers=numbers, better=better, notes=notes, facts=facts)

    def _network(self, model: torch.nn.Module, trained: Trained) -> Network:
        return Network(model.to(trained.model.device), {}, trained.model.device, trained.model.autocast)

    def _losses(self, network: Network, examples: Encoded, kind: language.Kind, trained: Trained) -> Losses:
        known = {name: ids for name, ids in examples.columns.items() if name != "token_type_ids" or kind == "masked"}
        examples = Encoded(known, examples.padding, examples.left, examples.labels)
        if kind == "causal":
            return causal_losses(network, examples)
        tokenizer = trained.tokenizer
        if tokenizer.mask_token_id is None:
            raise FinetuneBenchError("the tokenizer has no mask token, which a masked language model predicts at")
        return masked_losses(network, examples, trained.special_ids(), tokenizer.mask_token_id)

    def _output_of(self, model: torch.nn.Module) -> str:
        """Say which output matrix words are predicted with."""
        ends: Any = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
        tied = ends[1] is not None and ends[0].weight is ends[1].weight
        return "the tuned embeddings, to which it is tied" if tied else "the pre-trained output matrix"

    def _text_sets(self, trained: Trained, notes: list[str]) -> dict[str, Split]:
        sets = {"own": some_texts(trained.data, self.texts)}
        if trained.task.name.startswith("wordnet"):
            return sets
        try:
            glosses = registry.task(_FOREIGN).load(trained.data_root)
        except FinetuneBenchError as error:
            notes.append(f"Foreign texts are left out: {error}")
            return sets
        texts = next(iter(glosses.evaluation.values())).texts[: self.texts]
        return sets | {"foreign": Split(texts, None, [0] * len(texts))}

    def _probed(self, trained: Trained) -> Findings:
        probe = self._probe(trained.task)
        findings = probe.measure(trained)
        numbers = {key: value for key, value in findings.numbers.items() if key.endswith(": change")}
        note = f"{trained.checkpoint} has no language-modelling head; what it keeps is read by frozen probes."
        better: dict[str, Better] = dict.fromkeys(numbers, "higher")
        return Findings(numbers=numbers, better=better, notes=[note], facts=findings.facts)


def _compared(name: str, before: Losses, after: Losses) -> dict[str, float]:
    """Return levels and the mean change by text with its interval; the two are of the same texts."""
    change = estimates.t_interval(after.by_text() - before.by_text())
    return {
        f"{name}: before": before.level(),
        f"{name}: after": after.level(),
        f"{name}: change": change.value,
        f"{name}: low": change.low,
        f"{name}: high": change.high,
        f"{name}: perplexity before": math.exp(min(before.level(), 700.0)),
        f"{name}: perplexity after": math.exp(min(after.level(), 700.0)),
    }
