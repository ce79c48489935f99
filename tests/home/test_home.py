"""Methods outside the benchmark train as inside it: in a plain loop, and in transformers.Trainer."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils.data import Dataset, IterableDataset, Sampler

from finetune_bench import home, registry
from finetune_bench.errors import FinetuneBenchError, UnknownName, Unsupported, UsageError
from finetune_bench.method.base import Method
from finetune_bench.metrics import Kind
from finetune_bench.model.dropout import Dropout, active_dropout
from finetune_bench.model.structure import checkpoint_activations
from finetune_bench.recipe import Recipe
from finetune_bench.task import Batch
from finetune_bench.testing.toys import ARCHITECTURES, CPU, toy_examples, toy_model, toy_task
from finetune_bench.training.examples import training_steps
from finetune_bench.training.loop import make_scheduler, train
from finetune_bench.training.run import TrainingRun

STEPS = 20
RECIPE = Recipe(lr=1e-3, batch_size=10, steps=STEPS, warmup=0.0)
ACCUMULATED = dataclasses.replace(RECIPE, accumulation=2)  # 27 examples: the third step of an epoch has 5 + 2
METHODS = [
    "vanilla(dropout=all_off)",
    "hype(eps=0.1,dropout=all_off)",
    "hype(eps=0.1,dropout=all_off)+rdrop",
    "ema(dropout=all_off)",
    "l2_sp(dropout=all_off)",
    "child_tuning_d(dropout=all_off)",
    "mixout(p=0.5)",
    "sam(dropout=all_off)",
    "freelb(dropout=all_off)",
    "recadam(t0=0.3,dropout=all_off)",
    "sage(cap=2,dropout=all_off)",
    "lora(dropout=all_off)",
]


def encoded(kind: Kind = "classification") -> Any:
    return toy_examples(kind, 27)


def inside(
    method: str, recipe: Recipe = RECIPE, kind: Kind = "classification"
) -> tuple[TrainingRun, dict[str, Tensor]]:
    """The benchmark's own run, and the weights that it scores."""
    stack = registry.make_stack(method)
    model = toy_model("bert", kind, stack.dropout)
    task = toy_task(kind)
    run = TrainingRun(model, task, encoded(kind), recipe, stack, seed=3, device=CPU)
    train(run)
    with stack.evaluating(run):
        scored = {name: weight.detach().clone() for name, weight in run.params.items()}
    stack.teardown(run)
    with torch.no_grad():
        for name, weight in run.params.items():
            weight.copy_(scored[name])
    return run, dict(model.state_dict())


def as_dict(batch: Batch) -> dict[str, Tensor]:
    return {**batch.inputs, "labels": batch.labels}


def outside(method: str, recipe: Recipe = RECIPE, kind: Kind = "classification") -> nn.Module:
    """A model trained in a loop of one's own on the same batches."""
    model = toy_model("bert", kind, Dropout.KEEP)
    vanilla = registry.make_stack("vanilla")
    data = TrainingRun(nn.Linear(1, 1), toy_task(kind), encoded(kind), recipe, vanilla, seed=3, device=CPU)
    options: dict[str, Any] = {"batch_size": recipe.batch_size, "accumulation": recipe.accumulation}
    with home.attach(
        method,
        model,
        total_steps=STEPS,
        batches=lambda order: map(as_dict, data.batches(order)),
        seed=3,
        **options,
    ) as tuned:
        decayed = [p for name, p in tuned.run.params.items() if name not in tuned.run.undecayed and p.requires_grad]
        others = [p for p in tuned.parameters() if not any(p is weight for weight in decayed)]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        optimizer = tuned.optimizer(AdamW(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-6, fused=True))
        scheduler = make_scheduler(optimizer, recipe, STEPS)
        for parts in data.steps():
            optimizer.zero_grad()
            examples = sum(map(len, parts))
            for part in parts:
                tuned.backward(as_dict(data.examples.batch(part, CPU)), share=len(part) / examples)
            nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
            tuned.before_step()
            optimizer.step()
            scheduler.step()
            tuned.after_step()
    return model


def assert_close(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)


# --- a loop of one's own ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_an_own_loop_trains_as_the_benchmark_does(method: str) -> None:
    _, scored = inside(method)
    model = outside(method)
    assert_close(model, scored)
    start = bert().state_dict()
    moved = max(float((tensor - start[name]).abs().max()) for name, tensor in model.state_dict().items())
    assert moved > 1e-3
    assert active_dropout(model) == active_dropout(toy_model("bert", "classification", Dropout.KEEP))


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.slow
def test_an_own_loop_accumulates_as_the_benchmark_does(kind: Kind) -> None:
    method = "hype(eps=0.1,dropout=all_off)+rdrop"
    _, scored = inside(method, ACCUMULATED, kind)
    assert_close(outside(method, ACCUMULATED, kind), scored)


@pytest.mark.parametrize("policy", ["hidden_off", "all_off"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_is_switched_off_and_on_again(architecture: str, policy: str) -> None:
    kept = toy_model(architecture, "classification", Dropout.KEEP)
    model = toy_model(architecture, "classification", Dropout.KEEP)
    tuned = home.attach(f"vanilla(dropout={policy})", model, total_steps=1)
    assert active_dropout(model) == active_dropout(toy_model(architecture, "classification", Dropout(policy)))
    if policy == "all_off":
        ids = torch.arange(5, 17).reshape(2, 6)
        model.train()
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    tuned.finish()
    assert active_dropout(model) == active_dropout(kept)


def test_without_a_request_the_users_own_dropout_stays() -> None:
    model = toy_model("bert", "classification", Dropout.KEEP)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.25
    home.attach("vanilla", model, total_steps=1)
    assert set(active_dropout(model).values()) == {0.25}


def batch_of(kind: Kind = "classification") -> dict[str, Tensor]:
    return as_dict(toy_examples(kind, 8).batch(range(8), CPU))


def bert() -> nn.Module:
    return toy_model("bert", "classification", Dropout.KEEP)


def test_the_kind_is_the_models() -> None:
    model = toy_model("bert", "regression", Dropout.KEEP)
    tuned = home.attach("vanilla", model, total_steps=1)
    assert tuned.run.task.kind == "regression"
    integers = batch_of("regression") | {"labels": torch.arange(8)}
    assert home.to_batch(integers, tuned.run.task, CPU).labels.dtype == torch.float32
    assert home.attach("vanilla", bert(), total_steps=1).run.task.outputs == 3


def test_evaluating_swaps_and_finish_keeps() -> None:
    model = bert()
    tuned = home.attach("ema(beta=0.5,warmup=false)", model, total_steps=1)
    optimizer = tuned.optimizer(SGD(tuned.parameters(), lr=0.5))
    before = model.classifier.bias.detach().clone()
    tuned.backward(batch_of())
    tuned.before_step()
    optimizer.step()
    tuned.after_step()
    after = model.classifier.bias.detach().clone()
    with tuned.evaluating():
        torch.testing.assert_close(model.classifier.bias.detach(), (before + after) / 2)
        torch.testing.assert_close(tuned.state_dict()["classifier.bias"], (before + after) / 2)
    assert torch.equal(model.classifier.bias, after)
    tuned.finish()
    tuned.finish()
    torch.testing.assert_close(model.classifier.bias.detach(), (before + after) / 2)


def test_an_error_leaves_a_plain_model_with_the_last_weights() -> None:
    model = bert()
    with pytest.raises(ZeroDivisionError), home.attach("ema(dropout=all_off)", model, total_steps=1):
        with torch.no_grad():
            model.classifier.bias.fill_(3.0)
        raise ZeroDivisionError
    assert active_dropout(model) == active_dropout(bert())
    assert (model.classifier.bias == 3.0).all()


class Bad(Method):
    """A method whose setup fails."""

    name = "bad"

    def setup(self, run: Any) -> None:
        raise ZeroDivisionError

    def teardown(self, run: Any) -> None:
        run.model.torn_down = True


def test_a_setup_that_fails_is_undone() -> None:
    model = bert()
    with pytest.raises(ZeroDivisionError):
        home.attach([Bad(dropout=Dropout.ALL_OFF)], model, total_steps=1)
    assert model.torn_down
    assert active_dropout(model) == active_dropout(bert())


def test_what_can_not_run_is_said_before_anything_changes() -> None:
    model = bert()
    with pytest.raises(Unsupported, match="ema and swa both decide about the evaluated weights"):
        home.attach("ema(dropout=all_off)+swa", model, total_steps=1)
    assert active_dropout(model) == active_dropout(bert())
    with pytest.raises(Unsupported, match="hype: noise of 1e-05 is lost in bf16"):
        home.attach("hype", bert(), total_steps=1, precision="bf16")
    checkpoint_activations(model)
    with pytest.raises(Unsupported, match="mixout: gradient checkpointing"):
        home.attach("mixout", model, total_steps=1)
    with pytest.raises(UsageError, match="passes over the training data"):
        home.attach("child_tuning_d", bert(), total_steps=1)
    with pytest.raises(UnknownName, match="hype"):
        home.attach("hyp", bert(), total_steps=1)


def test_models_and_batches_that_are_not_understood() -> None:
    with pytest.raises(UsageError, match=r"Linear has no config\.num_labels"):
        home.attach("vanilla", nn.Linear(2, 2), total_steps=1)
    with pytest.raises(UsageError, match="tf32' is a setting of the whole process"):
        home.attach("vanilla", bert(), total_steps=1, precision="tf32")
    with pytest.raises(UsageError, match="expected fp32 weights"):
        home.attach("vanilla", bert().bfloat16(), total_steps=1)
    several = bert()
    several.config.problem_type = "multi_label_classification"
    with pytest.raises(UsageError, match="several labels"):
        home.attach("vanilla", several, total_steps=1)
    tuned = home.attach("vanilla", bert(), total_steps=1)
    with pytest.raises(FinetuneBenchError, match=r"optimizer = tuned\.optimizer"):
        tuned.backward(batch_of())
    optimizer = tuned.optimizer(SGD(tuned.parameters(), lr=0.1))
    with pytest.raises(FinetuneBenchError, match="had their optimiser"):
        tuned.optimizer(optimizer)
    with pytest.raises(UsageError, match="with 'labels'; got input_ids"):
        tuned.backward({"input_ids": torch.ones(1, 1)})


def test_bf16_runs_under_autocast_and_a_scaler_scales() -> None:
    seen = []
    model = bert()
    tuned = home.attach("vanilla(dropout=all_off)", model, total_steps=1, precision="bf16")
    tuned.optimizer(SGD(tuned.parameters(), lr=0.1))
    model.classifier.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    tuned.backward(batch_of())
    assert seen == [torch.bfloat16]
    gradient = model.classifier.bias.grad.clone()
    model.zero_grad()
    tuned.backward(batch_of(), scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    torch.testing.assert_close(model.classifier.bias.grad, 4 * gradient)


# --- transformers.Trainer ---------------------------------------------------------------------------------------------


class Rows(Dataset):
    """The toy examples, by their positions."""

    def __init__(self, kind: Kind) -> None:
        self.examples = encoded(kind)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: list[int]) -> dict[str, Tensor]:
        return as_dict(self.examples.batch(indices, CPU))


class InOrder(Sampler):
    """The order of the benchmark's run."""

    def __init__(self, recipe: Recipe, kind: Kind) -> None:
        self.steps = training_steps(27, recipe, 3, toy_task(kind).name)

    def __len__(self) -> int:
        return 27

    def __iter__(self) -> Iterator[int]:
        seen = 0
        for parts in self.steps:
            yield from (index for part in parts for index in part)
            seen += sum(map(len, parts))
            if seen == 27:
                return


def trainer_of(
    method: Any, folder: Path, recipe: Recipe = RECIPE, kind: Kind = "classification", model: Any = None, **options: Any
) -> Any:
    from transformers import TrainingArguments

    from finetune_bench.home.trainer import RegularisedTrainer

    class Ordered(RegularisedTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return InOrder(recipe, kind)

    rows = Rows(kind)
    arguments: dict[str, Any] = {
        "max_steps": STEPS,
        "learning_rate": recipe.lr,
        "weight_decay": 0.1,
        "adam_beta2": 0.99,
        "adam_epsilon": 1e-6,
        "per_device_train_batch_size": recipe.batch_size // recipe.accumulation,
        "gradient_accumulation_steps": recipe.accumulation,
        "save_strategy": "no",
        "report_to": "none",
        "logging_strategy": "no",
        "seed": 3,
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }
    handed = {name: options.pop(name) for name in ("optimizers", "model_init", "callbacks") if name in options}
    return Ordered(
        method=method,
        model=None if "model_init" in handed else model or toy_model("bert", kind, Dropout.KEEP),
        args=TrainingArguments(output_dir=str(folder), **arguments | options),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=rows.collate,
        **handed,
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [RECIPE, ACCUMULATED], ids=["plain", "accumulated"])
@pytest.mark.parametrize("method", METHODS)
def test_the_trainer_trains_as_the_benchmark_does(method: str, recipe: Recipe, tmp_path: Path) -> None:
    if recipe.accumulation > 1 and method.startswith("sam"):
        pytest.skip("SAM refuses accumulation")
    _, scored = inside(method, recipe)
    trainer = trainer_of(method, tmp_path, recipe)
    trainer.train()
    assert_close(trainer.model, scored)
    assert active_dropout(trainer.model) == active_dropout(bert())
    assert trainer.tuned is None


def first_gradient(folder: Path, accumulation: int) -> tuple[Tensor, float]:
    """The gradient of the first step, and the loss that Trainer reports for it."""
    recipe = Recipe(lr=1e-3, batch_size=8, steps=1, warmup=0.0, accumulation=accumulation)
    trainer = trainer_of("vanilla(dropout=all_off)", folder, recipe, max_steps=1, max_grad_norm=0.0)
    seen = []
    trainer.optimizer_cls_and_kwargs = (SGD, {"lr": 1.0})
    start = torch.cat([p.detach().reshape(-1).clone() for p in trainer.model.parameters()])
    trainer.args.weight_decay = 0.0
    trainer.args.lr_scheduler_type = "constant"
    seen.append(trainer.train().training_loss)
    return start - torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()]), seen[0]


@pytest.mark.slow
def test_accumulating_in_the_trainer_gives_the_same_gradient(tmp_path: Path) -> None:
    (whole, loss), (parts, loss_of_parts) = first_gradient(tmp_path, 1), first_gradient(tmp_path, 4)
    assert float(whole.norm()) > 0.1
    assert float(parts.norm() / whole.norm()) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    assert loss_of_parts == pytest.approx(loss, abs=1e-5)


def test_checkpoints_and_evaluations_use_what_the_method_evaluates(tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    options = {"save_strategy": "steps", "save_steps": 10, "eval_strategy": "steps", "eval_steps": 10}
    trainer = trainer_of("ema(beta=0.9,dropout=all_off)", tmp_path, RECIPE, **options)
    trainer.train()
    _, scored = inside("ema(beta=0.9,dropout=all_off)")
    last = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-20")
    assert_close(last, scored)
    assert last.config.hidden_dropout_prob == 0.1
    evaluated = trainer.state.log_history[-2]["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluated, abs=1e-6)
    trainer.save_model(str(tmp_path / "end"))
    assert_close(BertForSequenceClassification.from_pretrained(tmp_path / "end"), scored)


def test_the_best_checkpoint_can_be_loaded(tmp_path: Path) -> None:
    steps = {"save_strategy": "steps", "save_steps": 10, "eval_strategy": "steps", "eval_steps": 10}
    trainer = trainer_of("ema", tmp_path, RECIPE, load_best_model_at_end=True, metric_for_best_model="loss", **steps)
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)


def test_a_trainer_that_fails_leaves_a_plain_model(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Breaks(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError

    trainer = trainer_of("mixout", tmp_path, callbacks=[Breaks()])
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert trainer.tuned is None
    assert active_dropout(trainer.model) == active_dropout(bert())


def test_what_the_trainer_refuses(tmp_path: Path) -> None:
    model = bert()
    with pytest.raises(UsageError, match="does not support optimizers"):
        trainer_of("vanilla", tmp_path, model=model, optimizers=(SGD(model.parameters()), None))
    with pytest.raises(UsageError, match="does not support model_init"):
        trainer_of("vanilla", tmp_path, model_init=bert)
    for option, value in {"label_smoothing_factor": 0.1, "auto_find_batch_size": True}.items():
        with pytest.raises(UsageError, match=f"does not support {option}"):
            trainer_of("vanilla", tmp_path, **{option: value})
    with pytest.raises(UsageError, match="can't resume"):
        trainer_of("vanilla", tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(Unsupported, match="ema and swa both decide about the evaluated weights"):
        trainer_of("ema+swa", tmp_path).train()


def test_data_that_a_method_or_the_loss_cannot_use_is_refused(tmp_path: Path) -> None:
    class Endless(IterableDataset):
        def __iter__(self) -> Iterator[int]:
            yield from itertools.cycle(range(27))

    trainer = trainer_of("child_tuning_d", tmp_path)
    trainer.train_dataset = Endless()
    with pytest.raises(UsageError, match="expected data of a known length, got Endless"):
        trainer.train()
    trainer = trainer_of("hype", tmp_path)
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: {name: value for name, value in collate(rows).items() if name != "labels"}
    with pytest.raises(UsageError, match="expected batches with 'labels'; got input_ids"):
        trainer.train()


@pytest.mark.slow
def test_without_accelerate_the_extra_is_named() -> None:
    code = "import sys; sys.modules['accelerate'] = None\nimport finetune_bench.home_trainer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MachineError: transformers.Trainer needs accelerate" in done.stderr
    assert "finetune-bench[trainer]" in done.stderr
