"""Evaluation predicts without noise and dropout, examples sorted by length so that little is spent on padding."""

from __future__ import annotations

import numpy as np
import torch

from finetune_bench.method.step import View
from finetune_bench.training.examples import Encoded
from finetune_bench.training.run import TrainingRun

BATCH_SIZE = 32


def predict(run: TrainingRun, examples: Encoded) -> np.ndarray:
    """Return the model's logits, the model in evaluation mode; no random stream is drawn from.

    Args:
        run: the run of the trained model.
        examples: the examples, in any order.

    Returns:
        (examples, outputs), float32, in the order of the examples.
    """
    run.model.eval()
    order = np.argsort(-examples.lengths(), kind="stable")
    parts = []
    with torch.inference_mode():
        for start in range(0, len(order), BATCH_SIZE):
            batch = examples.batch(order[start : start + BATCH_SIZE].tolist(), run.device)
            parts.append(run.forward(batch, View(perturb=False)).logits.float())
        logits = torch.cat(parts).cpu().numpy()
    predictions = np.empty_like(logits)
    predictions[order] = logits
    return predictions
