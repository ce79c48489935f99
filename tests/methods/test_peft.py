from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from finetune_bench import registry
from finetune_bench.method.step import View
from finetune_bench.methods.lora import KINDS, LOW_RANK, LoRA, Peft, block_size, merged_values, target_names
from finetune_bench.model.dropout import Dropout
from finetune_bench.seeds import derive
from finetune_bench.testing import toys
from finetune_bench.training.loop import make_scheduler, train
from finetune_bench.training.run import TrainingRun

peft = pytest.importorskip("peft")

# Every kind with BERT, and each other architecture with one.
SAMPLE = [("bert", kind) for kind in KINDS]
SAMPLE += [(name, KINDS[i % len(KINDS)]) for i, name in enumerate(toys.ARCHITECTURES) if name != "bert"]
SAMPLE += [("gpt2", kind) for kind in ("dora", "pissa", "ia3", "vera")]
# These start at the model to the last bit; the others but for rounding.
EXACT = ("lora", "rslora", "vera", "ia3", "ln_tuning")


def logits(run: TrainingRun) -> Tensor:
    run.model.eval()
    with torch.no_grad():
        return run.forward(run.examples.batch(range(6), toys.CPU), View()).logits


@pytest.mark.parametrize(("architecture", "kind"), SAMPLE)
def test_it_starts_as_the_plain_model_and_merges(architecture: str, kind: str) -> None:
    method = Peft(kind=kind, dropout=Dropout.ALL_OFF)
    run, stack = toys.toy_run(method, architecture, recipe=replace(toys.RECIPE, steps=2, epochs=None))
    plain, form, names = logits(run), toys.shape(run.model), list(run.params)
    run.method.setup(run)
    start = logits(run)
    stack.teardown(run)
    torch.testing.assert_close(start, plain, atol=0 if kind in EXACT else 1e-5, rtol=0)
    run, stack = toys.toy_run(method, architecture, recipe=replace(toys.RECIPE, steps=2, epochs=None))
    train(run)
    adapted = logits(run)
    held = {name: weight.detach().clone() for name, weight in run.params.items()}
    with stack.evaluating(run):
        merged = logits(run)
    assert torch.equal(logits(run), adapted)
    assert all(torch.equal(weight, held[name]) for name, weight in run.params.items())
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-5)
    undecayed = set(run.undecayed)
    stack.teardown(run)
    assert toys.shape(run.model) == form
    assert list(run.params) == names
    assert (undecayed == run.undecayed) == (kind in ("lora", "rslora", "pissa", "oft"))


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_a_kind_learns_moves(kind: str) -> None:
    """A magnitude that stays where it starts is an adapter without effect."""
    run, stack = toys.toy_run(Peft(kind=kind))
    stack.setup(run)
    before = {name: run.params[name].detach().clone() for name in stack.methods[0].adapters_}  # type: ignore[attr-defined]
    stack.teardown(run)
    run, stack = toys.toy_run(Peft(kind=kind))
    train(run)
    assert before
    assert [name for name, value in before.items() if torch.equal(run.params[name], value)] == []
    stack.teardown(run)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_what_the_librarys_own_adapters_learn(kind: str) -> None:
    # A large epsilon: Adam divides by the gradient, which blows up the last bits of those near zero.
    recipe = replace(toys.RECIPE, steps=3, epochs=None, weight_decay=0.0, adam_eps=1e-3)
    run, stack = toys.toy_run(Peft(kind=kind, dropout=Dropout.ALL_OFF), recipe=recipe)
    train(run)
    theirs = toys.toy_model("bert", "classification", Dropout.ALL_OFF)
    targets = target_names(theirs, kind)
    low_rank = {"use_rslora": kind == "rslora", "use_dora": kind == "dora"}
    if kind == "pissa":
        low_rank["init_lora_weights"] = "pissa"  # type: ignore[assignment]
    config = {
        **dict.fromkeys(LOW_RANK, lambda: peft.LoraConfig(target_modules=targets, **low_rank)),
        # The library's own choice, of which it makes a list.
        "ia3": peft.IA3Config,
        "vera": lambda: peft.VeraConfig(projection_prng_key=run.generator("peft").initial_seed() % 2**32),
        "oft": lambda: peft.OFTConfig(oft_block_size=16),
        "ln_tuning": lambda: peft.LNTuningConfig(target_modules=targets),
    }[kind]()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own talk
        torch.manual_seed(derive(3, "method", "peft", "global", "1"))
        adapted = peft.get_peft_model(theirs, config)
    theirs.classifier.requires_grad_(True)
    trained = [weight for weight in adapted.parameters() if weight.requires_grad]
    betas = recipe.beta1, recipe.beta2
    optimizer = torch.optim.AdamW(trained, lr=recipe.lr, betas=betas, eps=recipe.adam_eps, weight_decay=0.0)
    scheduler = make_scheduler(optimizer, recipe, 3)
    for (part,) in run.steps():
        batch = run.examples.batch(part, toys.CPU)
        theirs.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(**batch.inputs).logits, batch.labels).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, recipe.clip)
        optimizer.step()
        scheduler.step()
    theirs.eval()
    expected = theirs(**run.examples.batch(range(6), toys.CPU).inputs).logits
    torch.testing.assert_close(logits(run), expected, atol=1e-5, rtol=1e-5)
    stack.teardown(run)


def test_the_merge_by_hand() -> None:
    layer = nn.Module()
    layer.linear = nn.Linear(2, 2, bias=False)
    nn.init.ones_(layer.linear.weight)  # type: ignore[arg-type]
    config = peft.LoraConfig(r=1, lora_alpha=0.5, target_modules=["linear"])
    peft.inject_adapter_in_model(config, layer)
    module = layer.linear
    with torch.no_grad():
        module.lora_A["default"].weight.copy_(torch.tensor([[1.0, 2.0]]))  # type: ignore[index, operator, union-attr]
        module.lora_B["default"].weight.copy_(torch.tensor([[3.0], [0.0]]))  # type: ignore[index, operator, union-attr]
        (merged,) = merged_values(module).values()
    assert torch.equal(merged, torch.tensor([[2.5, 4.0], [1.0, 1.0]]))
    assert torch.equal(module.base_layer.weight, torch.ones(2, 2))  # type: ignore[arg-type, union-attr]


def test_vera_projects_by_the_seed_of_the_run() -> None:
    projections = []
    for seed in (3, 3, 4):
        run, stack = toys.toy_run(Peft(kind="vera"))
        run = TrainingRun(run.model, run.task, run.examples, run.recipe, stack, seed=seed, device=toys.CPU)
        stack.setup(run)
        module = next(iter(stack.methods[0].layers_.values()))  # type: ignore[attr-defined]
        projections.append(module.vera_A["default"].clone())
        stack.teardown(run)
    assert torch.equal(projections[0], projections[1])
    assert not torch.equal(projections[0], projections[2])


def test_lora_is_that_kind() -> None:
    run, stack = toys.toy_run(LoRA())
    stack.setup(run)
    names = list(run.params)
    stack.teardown(run)
    assert [name.rpartition(".")[2] for name in names[-4:]] == ["lora_A", "lora_B"] * 2
    described = registry.describe(registry.make_stack("lora"), full=True)
    assert described == "lora(dropout=keep,r=8,alpha=8,adapter_dropout=0)"


@pytest.mark.parametrize(
    ("method", "partner", "said"),
    [
        (Peft(kind="ia3", r=4), "", "kind=ia3 has no rank"),
        (Peft(kind="vera", alpha=4.0), "", "kind=vera has no alpha"),
        (Peft(kind="oft", adapter_dropout=0.1), "", "kind=oft has no dropout"),
        (Peft(kind="oft", r=5), "", "r=5: not every matrix of BertForSequenceClassification can be cut"),
        (Peft(kind="pissa"), "l2_sp", "reads the pre-trained weights, and pissa splits them"),
        (Peft(kind="pissa"), "kl_anchor", "kl_anchor reads the pre-trained weights, and pissa splits them"),
        (Peft(), "child_tuning_f", "the weights that child_tuning_f acts on are frozen"),
        (Peft(), "lora", "peft and lora both decide about the weights that train"),
        (Peft(), "bitfit", "peft and bitfit both decide"),
        (Peft(), "mixout", "mixout holds weights to their pre-trained values, and its adapters have none"),
    ],
    ids=str,
)
def test_what_is_refused(method: Peft, partner: str, said: str) -> None:
    stack = [method, *([registry.method_class(partner)()] if partner else [])]
    assert said in str(toys.unsupported(stack))  # type: ignore[arg-type]


def test_blocks_of_oft() -> None:
    run, _ = toys.toy_run(Peft(kind="oft"))
    assert block_size(run.model) == 16
    assert toys.unsupported(Peft(kind="oft", r=8)) is None
    assert "no linear layer of torch's" in str(toys.unsupported(Peft(kind="oft"), "gpt2"))
