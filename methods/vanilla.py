"""Vanilla fine-tuning: no method at all, the baseline of every comparison.

**In one sentence.** Minimise the task's loss from the pre-trained weights with AdamW.

**Formula.** min over θ of E[ℓ(f(x; θ), y)]; ℓ is the cross-entropy, or the squared error for regression.

**Hyper-parameters.** Only `dropout`. Two controls stand beside every comparison that touches dropout:
`vanilla(dropout=hidden_off)` and `vanilla(dropout=all_off)`; without them a gain from removing dropout passes for the
gain of whatever came with it.

**Where it acts.** Nowhere.

**Cost.** One forward and one backward pass per step.

**Randomness drawn.** None beyond the model's dropout.

**Interactions.** It can't be stacked: it is what a stack of no methods would be.

**Deviations.** 1. Adam's bias correction is on (the BERT authors' optimiser had none, a known cause of instability).

**Source.** Devlin et al. 2019 (BERT); Loshchilov and Hutter 2019 (AdamW); Zhang et al. 2021 (bias correction).
"""

from __future__ import annotations

from finetune_bench.method.base import Method


class Vanilla(Method):
    """Fine-tuning as it comes."""

    name = "vanilla"
    batch_layout = "unpadded_trimmed"
