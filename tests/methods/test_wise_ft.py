"""WiSE-FT: the line from the pre-trained to the fine-tuned weights, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune_bench.methods.ema import EMA
from finetune_bench.methods.lora import LoRA
from finetune_bench.methods.noisytune import NoisyTune
from finetune_bench.methods.reinit_layers import ReinitLayers
from finetune_bench.methods.swa import SWA
from finetune_bench.methods.vanilla import Vanilla
from finetune_bench.methods.wise_ft import WiseFT, interpolate
from finetune_bench.recipe import Recipe
from finetune_bench.testing import toys
from finetune_bench.training import evaluation
from finetune_bench.training.loop import train
from tests.tiny_run import tiny_run

RECIPE = Recipe(lr=1e-2, batch_size=8, steps=3, warmup=0.0)


def test_interpolation_is_exact_at_both_ends_and_where_nothing_moved() -> None:
    start, end = torch.tensor([1.0, 0.1, 3e-8]), torch.tensor([2.0, 0.1, 1e8])
    assert interpolate(start, end, 0.25)[0] == 1.25
    assert torch.equal(interpolate(start, end, 0.0), start)
    assert torch.equal(interpolate(start, end, 1.0), end)
    assert interpolate(start, end, 0.3)[1] == start[1]


@pytest.mark.parametrize("head", ["final", "all"])
def test_what_is_evaluated_lies_on_the_line_and_the_weights_come_back(head: str) -> None:
    method = WiseFT(alpha=0.25, head=head)
    run, stack = toys.toy_run(method, recipe=RECIPE)
    train(run)
    raw = {name: weight.detach().clone() for name, weight in run.params.items()}
    with pytest.raises(RuntimeError, match="inside"), stack.evaluating(run):
        for name, weight in run.params.items():
            is_whole = head == "final" and name.startswith("classifier")
            expected = raw[name] if is_whole else 0.75 * run.pretrained[name] + 0.25 * raw[name]
            torch.testing.assert_close(weight.detach(), expected)
        raise RuntimeError("inside")
    assert all(torch.equal(weight, raw[name]) for name, weight in run.params.items())


def test_at_one_it_is_vanilla_and_at_zero_the_untrained_model() -> None:
    vanilla, _, predictions = toys.toy_train(Vanilla(), recipe=RECIPE)
    untouched, _ = toys.toy_run(Vanilla(), recipe=RECIPE)
    untrained = evaluation.predict(untouched, untouched.examples)
    for method, expected in ((WiseFT(alpha=1.0), predictions), (WiseFT(alpha=0.0, head="all"), untrained)):
        run, _, scored = toys.toy_train(method, recipe=RECIPE)
        assert toys.same(run, vanilla)
        assert np.array_equal(scored, expected)


def test_the_start_is_before_noise_and_what_was_drawn_anew_counts_as_the_head() -> None:
    run, stack = toys.toy_run([NoisyTune(), ReinitLayers(), WiseFT(alpha=0.0)], recipe=RECIPE)
    loaded = {name: weight.detach().clone() for name, weight in run.params.items()}
    train(run)
    with stack.evaluating(run):
        embeddings = "bert.embeddings.word_embeddings.weight"
        assert torch.equal(run.params[embeddings], loaded[embeddings])
        assert run.reanchored
        assert all(
            not torch.equal(run.params[name], run.pretrained[name]) for name in run.reanchored if "dense.weight" in name
        )


def test_a_merged_update_is_scaled() -> None:
    run, stack = toys.toy_run([LoRA(), WiseFT(alpha=0.5)], recipe=RECIPE)
    train(run)
    frozen = {name: weight.detach().clone() for name, weight in run.params.items()}
    scored, merged = {}, {}
    with stack.evaluating(run):
        scored = {name: weight.detach().clone() for name, weight in run.params.items()}
    with stack.methods[0].evaluating(run):
        merged = {name: weight.detach().clone() for name, weight in run.params.items()}
    adapted = [name for name in frozen if not torch.equal(frozen[name], merged[name])]
    assert adapted
    for name in adapted:
        torch.testing.assert_close(scored[name] - frozen[name], (merged[name] - frozen[name]) / 2)


def test_conflicts_are_refused() -> None:
    for other in (EMA, SWA):
        assert "decide about the evaluated weights" in str(toys.unsupported([WiseFT(), other()]))
    assert "write lora+wise_ft" in str(toys.unsupported([WiseFT(), LoRA()]))
    assert toys.unsupported([LoRA(), WiseFT()]) is None


def test_the_head_of_a_tiny_model_is_left_whole() -> None:
    run = tiny_run()
    with torch.no_grad():
        for weight in run.params.values():
            weight.add_(1.0)
    before = run.params["classifier.weight"].detach().clone()
    with WiseFT(alpha=0.0).evaluating(run):
        assert torch.equal(run.params["classifier.weight"], before)
