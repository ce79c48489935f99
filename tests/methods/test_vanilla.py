"""Vanilla here equals a plain PyTorch loop, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from finetune_bench import registry
from finetune_bench.metrics import Kind
from finetune_bench.recipe import Recipe
from finetune_bench.seeds import derive
from finetune_bench.testing import toys


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_vanilla_equals_a_plain_loop(kind: Kind) -> None:
    recipe = Recipe(lr=2e-3, batch_size=7, epochs=3, warmup=0.2, weight_decay=0.1)
    vanilla = registry.method_class("vanilla")()
    trained, result, _ = toys.toy_train(vanilla, kind=kind, recipe=recipe)

    run, _ = toys.toy_run(vanilla, kind=kind, recipe=recipe)  # for its fresh model only
    model, examples = run.model, run.examples
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    decayed = [p for name, p in model.named_parameters() if id(p) not in norms and not name.endswith("bias")]
    plain = [p for name, p in model.named_parameters() if id(p) in norms or name.endswith("bias")]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=2e-3,
        betas=(0.9, 0.99),
        eps=1e-6,
        fused=True,
    )
    order = torch.Generator().manual_seed(derive(3, "order", "toy"))
    torch.manual_seed(derive(3, "dropout"))
    model.train()
    total, losses, step = 12, [], 0
    for _ in range(3):
        shuffled = torch.randperm(len(examples), generator=order).tolist()
        for start in range(0, len(shuffled), 7):
            chosen = shuffled[start : start + 7]
            ids = [torch.as_tensor(examples.columns["input_ids"][i]) for i in chosen]
            inputs = nn.utils.rnn.pad_sequence(ids, batch_first=True)
            mask = nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in ids], batch_first=True)
            labels = examples.labels[chosen]
            rate = 2e-3 * (step / 2 if step < 2 else (total - step) / (total - 2))
            for group in optimizer.param_groups:
                group["lr"] = rate
            logits = model(input_ids=inputs, attention_mask=mask).logits
            if kind == "regression":
                loss = ((logits.squeeze(-1) - labels) ** 2).mean()
            else:
                loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            step += 1
    assert step == total
    assert np.array_equal(np.array(losses), result.steps["loss"])
    for name, weight in toys.weights(run).items():
        assert torch.equal(weight, toys.weights(trained)[name]), name
