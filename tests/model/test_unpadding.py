"""Without padding: the same numbers for real tokens, and a vocabulary that is whole again afterwards."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.masking_utils import bidirectional_mask_function

from finetune_bench.method.step import View
from finetune_bench.methods.vanilla import Vanilla
from finetune_bench.model import unpadding
from finetune_bench.model.attention import Pattern, Unpadding, attend_one_by_one, attend_padded, make_unpadding
from finetune_bench.model.dropout import Dropout
from finetune_bench.model.unpadding import make_mask, prepare_for
from finetune_bench.testing.toys import ARCHITECTURES, CPU, RECIPE, toy_examples, toy_model, toy_run, toy_train, weights

UNPADDED = dataclasses.replace(RECIPE, batch_layout="unpadded")
TRIMMED = dataclasses.replace(RECIPE, batch_layout="unpadded_trimmed")
KINDS = [name for name in ARCHITECTURES if name in unpadding.MODEL_TYPES]


def off() -> Vanilla:
    return Vanilla(dropout=Dropout.ALL_OFF)


@pytest.mark.parametrize("architecture", KINDS)
def test_logits_and_gradients_are_those_with_padding(architecture: str) -> None:
    found = []
    for recipe in (RECIPE, UNPADDED):
        run, _ = toy_run(off(), architecture, recipe=recipe)
        run.model.train()
        batch = run.examples.batch(range(8), CPU)
        assert len(set(batch.lengths or ())) > 1  # ragged
        loss = run.loss(batch)
        loss.backward()
        gradients = {name: weight.grad for name, weight in run.params.items()}
        found.append((run.forward(batch).logits, gradients))
    (logits, gradients), (unpadded_logits, unpadded_gradients) = found
    torch.testing.assert_close(unpadded_logits, logits, rtol=0, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(unpadded_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_both_ways_to_attend_are_one() -> None:
    lengths = (5, 1, 3)
    torch.manual_seed(0)
    layout = make_unpadding(lengths, CPU)
    for way in (attend_one_by_one, attend_padded):
        parts = tuple(torch.randn(1, 2, 9, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
        for part in parts:
            part.requires_grad_()
        out = way(parts, layout, dropout_p=0.0, scale=None)  # type: ignore[arg-type]
        assert out.shape == (1, 2, 9, 4)
        (out**2).sum().backward()
        if way is attend_one_by_one:
            expected, gradients = out, [part.grad for part in parts]
            by_hand = torch.softmax(parts[0][0, :, 5:6] @ parts[1][0, :, 5:6].mT / 2, -1) @ parts[2][0, :, 5:6]
            torch.testing.assert_close(out[0, :, 5:6], by_hand)
        else:
            torch.testing.assert_close(out, expected)
            for part, gradient in zip(parts, gradients, strict=True):
                torch.testing.assert_close(part.grad, gradient)


def test_both_ways_to_attend_are_one_with_a_pattern() -> None:
    """Causal, in a window, and with a bias: by hand for the longest text, and in the same way for all."""
    lengths, longest = (5, 1, 3), 5
    layout = make_unpadding(lengths, CPU)
    bias = torch.randn(1, 2, longest, longest, generator=torch.Generator().manual_seed(9), requires_grad=True)
    ahead = torch.ones(longest, longest, dtype=torch.bool).triu(1)
    far = torch.ones(longest, longest, dtype=torch.bool).tril(-2)
    patterns = [
        (Pattern(causal=True), torch.zeros(longest, longest).masked_fill(ahead, float("-inf"))),
        (Pattern(causal=True, window=2), torch.zeros(longest, longest).masked_fill(ahead | far, float("-inf"))),
        (Pattern(bias=bias), bias[0]),
    ]
    for pattern, scores in patterns:
        found = []
        for way in (attend_one_by_one, attend_padded):
            parts = [torch.randn(1, 2, 9, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
            for part in parts:
                part.requires_grad_()
            out = way((parts[0], parts[1], parts[2]), layout, pattern)
            query, key, value = (part[0, :, :longest] for part in parts)
            torch.testing.assert_close(out[0, :, :longest], torch.softmax(query @ key.mT / 2 + scores, -1) @ value)
            bias.grad = None
            (out**2).sum().backward()
            gradients = [part.grad for part in parts] + [bias.grad]
            assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
            found.append([out, *gradients])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)


def test_layers_see_real_tokens_only_and_outputs_are_whole() -> None:
    run, _ = toy_run(off(), recipe=UNPADDED)
    run.model.train()
    batch = run.examples.batch(range(6), CPU)
    assert batch.lengths
    shapes = {state.shape for state in run.forward(batch, View(hidden=True)).hidden}
    width = run.model.config.hidden_size  # type: ignore[union-attr]
    # Only the first and the last state may be whole: captured before the padding is dropped, or after it is back.
    assert torch.Size((1, sum(batch.lengths), width)) in shapes
    run.model.eval()
    assert {state.shape[1] for state in run.forward(batch, View(hidden=True)).hidden} == {max(batch.lengths)}


@pytest.mark.parametrize("architecture", KINDS)
def test_evaluation_is_the_library_s_own(architecture: str) -> None:
    plain, prepared = (toy_model(architecture, "classification", Dropout.KEEP) for _ in range(2))
    prepare_for(prepared, CPU, "unpadded")
    run, _ = toy_run(off())
    inputs = run.examples.batch(range(8), CPU).inputs
    with torch.no_grad():
        assert torch.equal(plain.eval()(**inputs).logits, prepared.eval()(**inputs).logits)


# MPNet's own attention takes the library's plain mask, which looks at the padding once per pass.
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "mpnet"])
def test_no_padded_pass_reads_a_value_off_the_cpu(architecture: str) -> None:
    """A meta tensor has no values: whatever would wait for a device is an error on it."""
    meta = torch.device("meta")
    model = toy_model(architecture, "classification", Dropout.KEEP)
    prepare_for(model, meta, "padded")
    model.to(meta)
    batch = toy_examples("classification", left=architecture == "xlnet").batch(range(6), CPU)
    inputs = {name: values.to(meta) for name, values in batch.inputs.items()}
    for mode in (True, False):
        model.train(mode)(**inputs).logits.sum().backward()


def test_off_the_cpu_a_mask_is_made_without_a_look_at_the_padding() -> None:
    padding = torch.ones(2, 5, dtype=torch.bool)
    options = {"batch_size": 2, "q_length": 5, "kv_length": 5, "mask_function": bidirectional_mask_function}
    options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": True}
    assert make_mask(**options, attention_mask=padding) is None
    assert make_mask(**options, attention_mask=padding.to("meta"), device="meta").shape == (2, 1, 5, 5)


def test_rows_that_never_come_get_their_weight_decay() -> None:
    usual, _, _ = toy_train(off())
    run, result, _ = toy_train(off(), recipe=TRIMMED)
    start, _ = toy_run(off())
    used = np.unique(np.concatenate(run.examples.columns["input_ids"]))
    table = run.model.get_input_embeddings().weight  # type: ignore[operator]
    untouched = sorted(set(range(len(table))) - set(used.tolist()))
    assert len(untouched) >= 5
    before = start.model.get_input_embeddings().weight  # type: ignore[operator]
    assert not torch.equal(table[untouched], before[untouched])
    for name, weight in weights(usual).items():
        torch.testing.assert_close(weights(run)[name], weight, rtol=0, atol=2e-5, msg=name)
    assert len(result.sketches) == len(result.sketch_steps)


def test_examples_and_names_are_as_before() -> None:
    run, _ = toy_run(off(), recipe=TRIMMED)
    table, examples, names = run.model.get_input_embeddings().weight, run.examples, list(run.params)  # type: ignore[operator]
    from finetune_bench.training.loop import train

    train(run)
    assert run.model.get_input_embeddings().weight is table  # type: ignore[operator]
    assert run.examples is examples
    assert list(run.params) == names
    assert all(run.params[name] is weight for name, weight in run.model.named_parameters())


@pytest.mark.slow
def test_a_study_takes_the_furthest_that_all_of_it_can_do(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    from finetune_bench.errors import UsageError
    from finetune_bench.recipe import Recipe
    from finetune_bench.runner.plan import make_plan
    from finetune_bench.study.study import Study

    study = Study(("hype",), (str(tiny_data),), (str(tiny_checkpoint),), seeds=(1,), out=tmp_path, device="cpu")

    def found(**changes: object) -> tuple[str, str]:
        plan = make_plan(dataclasses.replace(study, **changes))  # type: ignore[arg-type]
        batch_layouts = {cell.recipe.batch_layout for cell in plan.cells}
        assert len(batch_layouts) == 1
        return batch_layouts.pop(), " ".join(note for note in plan.notes if "Batches are" in note)

    assert found() == ("unpadded_trimmed", "")
    assert found(methods=("hype", "ema")) == ("unpadded", "Batches are unpadded: 'ema' can do no more.")
    assert found(methods=("hype+lnsr", "ema")) == ("padded", "Batches are padded: 'hype+lnsr' can do no more.")
    checkpointed = Recipe(gradient_checkpointing=True)
    assert found(recipe=checkpointed)[0] == "padded"
    assert found(batch_layout="padded") == ("padded", "")
    with pytest.raises(UsageError, match="--batch-layout unpadded_trimmed: 'ema' can be unpadded at most"):
        found(methods=("ema",), batch_layout="unpadded_trimmed")


@pytest.mark.parametrize(
    ("device", "asked", "chosen"),
    [
        ("cpu", "auto", "unpadded"),
        ("cuda", "auto", "padded"),
        ("mps", "auto", "padded"),
        ("cuda", "unpadded", "unpadded"),
    ],
)
def test_off_the_cpu_a_study_is_padded_unless_it_asks_for_less(
    device: str, asked: str, chosen: str, tiny_checkpoint: Path, tiny_data: Path
) -> None:
    from finetune_bench.runner.checks import choose_batch_layout
    from finetune_bench.study.study import Study

    study = Study(("ema",), (str(tiny_data),), (str(tiny_checkpoint),), seeds=(1,), batch_layout=asked)
    batch_layout, notes = choose_batch_layout(study, torch.device(device))
    assert batch_layout == chosen
    said = ["--batch-layout unpadded asks for the furthest" in note for note in notes]
    assert any(said) == (device != "cpu" and asked == "auto")


def test_what_is_padded_anyway_says_what_is_in_the_way(tiny_checkpoint: Path, tiny_data: Path) -> None:
    from finetune_bench.runner.checks import choose_batch_layout
    from finetune_bench.study.study import Study

    study = Study(("lnsr",), (str(tiny_data),), (str(tiny_checkpoint),), seeds=(1,))
    found = choose_batch_layout(study, torch.device("cuda"))
    assert found == ("padded", ["Batches are padded: 'lnsr' can do no more."])


def test_a_batch_is_unpadded_once_for_all_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_bench.methods.rdrop import RDrop
    from finetune_bench.training import run as training_run

    made: list[object] = []

    def counted(lengths: tuple[int, ...], device: torch.device) -> Unpadding:
        made.append(lengths)
        return make_unpadding(lengths, device)

    monkeypatch.setattr(training_run, "make_unpadding", counted)
    run, result, _ = toy_train(RDrop(), recipe=UNPADDED)
    assert result.forwards_per_step == 2
    assert len(made) == run.total_steps
