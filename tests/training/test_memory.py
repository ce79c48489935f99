"""Memory formulas against what is measured: the peak of a fresh process, and stacks to the byte."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from finetune_bench import registry, testing
from finetune_bench.method.cost import Memory
from finetune_bench.testing import toys
from finetune_bench.training.loop import train
from finetune_bench.training.memory import expected_bytes, memory_sizes, saved_activation_bytes
from tests import ROOT

# Each method trains in a child of one process that has imported everything, so that the peak is the training's.
SCRIPT = """
import json, os, sys
import numpy as np
import torch
from transformers import AutoConfig
from finetune_bench import device, registry, testing
from finetune_bench.training.memory import memory_sizes
from finetune_bench.model import build, with_dropout
from finetune_bench.study import Recipe
from finetune_bench.training import Encoded, TrainingRun, train

torch.set_num_threads(1)
random = np.random.default_rng(0)
ids = [random.integers(5, 2000, size=128) for _ in range(48)]
examples = Encoded(
    {"input_ids": ids, "attention_mask": [np.ones_like(row) for row in ids]},
    {"input_ids": 0, "attention_mask": 0}, False, torch.tensor([int(row[0]) % 3 for row in ids]),
)

def measure(text):
    stack = registry.make_stack(text)
    config = AutoConfig.for_model("bert", vocab_size=2000, hidden_size=192, num_hidden_layers=3, num_attention_heads=4,
                                  intermediate_size=768)
    config.num_labels = 3
    before = resident()
    device.reset_peak(testing.CPU)
    model = build(with_dropout(config, stack.dropout))
    run = TrainingRun(model, testing.toy_task("classification"), examples, Recipe(batch_size=16, steps=3, warmup=0.0),
                      stack, seed=1, device=testing.CPU)
    train(run)
    peak = device.peak(testing.CPU)[0] - before
    frozen = {name for name, weight in run.params.items() if not weight.requires_grad}
    sizes = memory_sizes(run, frozen) if stack.methods[0].name == "vanilla" else {}
    return {"peak": peak, "sizes": sizes}

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

if not device.reset_peak(testing.CPU):
    print("null")
    sys.exit()
testing.toy_train(registry.method_class("vanilla")())  # what is loaded at first use is not the method's
found = {}
for text in sys.argv[1:]:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, json.dumps(measure(text)).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        found[text] = json.load(answer)
    os.wait()
print(json.dumps(found))
"""
METHODS = ["hype", "rdrop", "r3f", "mixout", "l2_sp", "ema", "child_tuning_d"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak")
def test_peak_memory_is_within_a_quarter_of_the_formula() -> None:
    """Vanilla's measured peak of the resident set, and what the formula adds to it, against the method's peak."""
    twins = {method: f"vanilla(dropout={registry.make_stack(method).dropout})" for method in METHODS}
    command = [sys.executable, "-c", SCRIPT, *dict.fromkeys(twins.values()), *METHODS]
    root = ROOT
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    found = json.loads(done.stdout)
    if found is None:
        pytest.skip("this container doesn't let a process reset its peak")
    for method, twin in twins.items():
        sizes = found[twin]["sizes"]
        saved, kept = expected_bytes(registry.make_stack(method).memory(Memory()), sizes)
        plain, _ = expected_bytes(Memory(), sizes)
        expected = found[twin]["peak"] + saved - plain + kept
        assert found[method]["peak"] == pytest.approx(expected, rel=0.25), method


@pytest.mark.parametrize("name", registry.names("methods"))
def test_formulas_are_right_to_the_byte(name: str) -> None:
    # These leave out a few vectors: AWP moves no norms, Cutoff saves what is cut, mixup its shares and labels, LNSR's
    # second pass has no head, two save what enters and forms the head, two a number per layer or head that says what is
    # dropped, and the losses of single examples a number of each.
    rough = name in (
        *(
            "awp",
            "confidence_penalty",
            "cutoff",
            "dft",
            "drophead",
            "focal",
            "kl_anchor",
            "label_smoothing",
            "layerdrop",
        ),
        *("lnsr", "match_tuning", "mixup", "r4f"),
    )
    try:
        testing.declares_its_memory(registry.method_class(name), tolerance=0.01 if rough else 0.0)
    except testing.Skip as reason:
        pytest.skip(str(reason))


def test_a_kernel_that_keeps_what_heads_give_is_reckoned_with() -> None:
    """Without attention dropout a CPU's kernel does, too, as those of CUDA devices do."""
    drophead, layers, tolerance = registry.method_class("drophead")(dropout="all_off"), 2, 200
    run, _ = toys.toy_run(drophead)
    train(run)
    sizes = memory_sizes(toys.toy_run(registry.method_class("vanilla")(dropout="all_off"))[0])
    assert sizes["H_heads"] == pytest.approx(layers * sizes["H"], abs=tolerance)
    assert saved_activation_bytes(run) == pytest.approx(
        expected_bytes(drophead.memory(Memory()), sizes)[0], abs=tolerance
    )
    assert memory_sizes(toys.toy_run(registry.method_class("vanilla")())[0])["H_heads"] < tolerance
    assert memory_sizes(toys.toy_run(registry.method_class("vanilla")(), "xlnet")[0])["H_heads"] == 0


@pytest.mark.parametrize("k", [1, 2])
def test_frozen_layers_save_nothing_below(k: int) -> None:
    method = registry.method_class("top_k")(k=k)
    run, _ = toys.toy_run(method)
    train(run)
    frozen = {name for name, weight in run.params.items() if not weight.requires_grad}
    sizes = memory_sizes(toys.toy_run(registry.method_class("vanilla")())[0], frozen)
    assert saved_activation_bytes(run) == expected_bytes(method.memory(Memory()), sizes)[0]
    assert sizes["F_frozen"] > 0


@pytest.mark.parametrize("text", ["hype+rdrop", "rdrop+l2_sp", "hype+r3f", "rdrop+r3f", "r3f+rdrop"])
def test_stacks_save_what_their_formulas_add_up_to(text: str) -> None:
    run, stack = toys.toy_run(list(registry.make_stack(text).methods))
    plain, _ = toys.toy_run(registry.method_class("vanilla")(dropout=stack.dropout))
    train(run)
    frozen = {name for name, weight in run.params.items() if not weight.requires_grad}
    expected, _ = expected_bytes(stack.memory(Memory()), memory_sizes(plain, frozen))
    assert saved_activation_bytes(run) == expected


def test_a_formula_reads_as_a_sum() -> None:
    memory = Memory().times(2).plus(saved={"D": 1}, kept={"P_frozen": -3, "P": 0.5})
    assert memory.saved_formula == "I + 2 · F + 2 · L + D"
    assert memory.kept_formula == "0.5 · P − 3 · P_frozen"
    assert Memory().kept_formula == "0"
    with pytest.raises(ValueError, match="made of I, F, .*; got 'X'"):
        Memory(saved={"X": 1})
