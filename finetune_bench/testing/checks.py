"""The contract that every method keeps, as checks: for this project's tests, and for authors of plugins.

    finetune-bench check my_method.py

Each check trains tiny random encoders for a few steps on a CPU; all of them take some seconds. A check that does not
apply says why.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune_bench import registry
from finetune_bench.device import random_state_kept
from finetune_bench.method.base import Method
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import View
from finetune_bench.metrics import Kind
from finetune_bench.model import packing
from finetune_bench.model.dropout import Dropout
from finetune_bench.parameters import Range, as_text, kind_of
from finetune_bench.recipe import ARRANGEMENTS, Recipe
from finetune_bench.study.search import settings
from finetune_bench.testing.accumulation import forms, micro_batch_difference
from finetune_bench.testing.toys import (
    ARCHITECTURES,
    CPU,
    KINDS,
    RECIPE,
    same,
    toy_run,
    toy_train,
    unsupported,
)
from finetune_bench.training import evaluation
from finetune_bench.training.checkpoint import Checkpoints
from finetune_bench.training.loop import make_optimizer, train
from finetune_bench.training.memory import expected_bytes, kept_bytes, memory_sizes, saved_activation_bytes
from finetune_bench.training.run import TrainingStep

CLOSE = 1e-3  # of losses and predictions that differ by rounding
PAIR_RECIPE = Recipe(lr=1e-3, batch_size=8, steps=3, warmup=0.0)


# --- the checks: each takes a method's class and raises AssertionError with a sentence, or Skip ----------------------


class Skip(Exception):
    """A check does not apply."""


def _twin(method: Method) -> Method:
    return registry.method_class(registry.BASELINE)(dropout=method.dropout)


def has_a_card(owner: type[Method]) -> None:
    """The file's docstring is the method's card, and the id follows the convention."""
    card = sys.modules[owner.__module__].__doc__ or owner.__doc__ or ""
    assert len(card.split()) >= 10, "its file's docstring should say in a few sentences what it does, and its formula"
    assert re.fullmatch("[a-z0-9_]+", owner.name), f"the name '{owner.name}' should be of lower-case letters, digits, _"


def can_be_searched(owner: type[Method]) -> None:
    """Its `search_space` names parameters, and every value that a search may draw is one that they accept."""
    if not owner.search_space:
        raise Skip("it has no search_space; a search tries learning rates only")
    kinds = {field.name: kind_of(owner, field)[0] for field in dataclasses.fields(owner)}
    for name, space in owner.search_space.items():
        assert name in kinds, f"search_space: '{name}' is no parameter of {owner.__name__}"
        values: tuple[Any, ...] = (space.low, space.high) if isinstance(space, Range) else space
        for value in values:
            whole: dict[str, Any] = {name: round(value) if kinds[name] is int else value}
            owner(**whole)
    tried = settings(owner.name, 5, 2e-5)
    assert len(set(tried)) == 5, f"five settings of a search are only {len(set(tried))} different ones"


def trains_everywhere(owner: type[Method]) -> None:
    """On every architecture, for classification and regression, it trains to finite numbers or says why it can't."""
    trained = False
    for architecture in ARCHITECTURES:
        for kind in KINDS:
            if unsupported(owner(), architecture, kind):
                continue
            _, trace, predictions = toy_train(owner(), architecture, kind)
            assert np.isfinite(trace.steps["loss"]).all(), f"its loss is not finite on {architecture}, {kind}"
            assert np.isfinite(predictions).all(), f"its predictions are not finite on {architecture}, {kind}"
            trained = True
    if not trained:
        raise Skip("it supports none of the tiny models")


def neutral_is_vanilla(owner: type[Method]) -> None:
    """At its neutral setting it equals vanilla with the same dropout, to the last bit."""
    if owner.neutral is None:
        raise Skip("it declares no neutral setting")
    for kind in KINDS:
        if unsupported(owner(), kind=kind):
            continue
        method = owner(**owner.neutral)
        run, trace, predictions = toy_train(method, kind=kind)
        twin, twin_trace, twin_predictions = toy_train(_twin(method), kind=kind)
        assert same(run, twin), f"with {dict(owner.neutral)} its weights differ from vanilla's ({kind})"
        assert np.array_equal(trace.steps["loss"], twin_trace.steps["loss"]), f"its losses differ ({kind})"
        assert np.array_equal(predictions, twin_predictions), f"its predictions differ ({kind})"


def is_alive(owner: type[Method]) -> None:
    """With its defaults it does something: weights or predictions differ from vanilla's with the same dropout."""
    if owner.name == registry.BASELINE:
        raise Skip("it is vanilla")
    run, _, predictions = toy_train(owner())
    twin, _, twin_predictions = toy_train(_twin(owner()))
    equal = same(run, twin) and np.array_equal(predictions, twin_predictions)  # averaged weights show in the latter
    assert not equal, "with its defaults it does nothing at all"


def is_deterministic(owner: type[Method]) -> None:
    """The same seed twice gives the same losses, weights and predictions, to the last bit."""
    first, second = toy_train(owner()), toy_train(owner())
    assert np.array_equal(first[1].steps["loss"], second[1].steps["loss"]), "its losses differ between two equal runs"
    assert same(first[0], second[0]), "its weights differ between two equal runs"
    assert np.array_equal(first[2], second[2]), "its predictions differ between two equal runs"


def resumes(owner: type[Method]) -> None:
    """Gone on with from a checkpoint in its middle, it ends as an undisturbed run does, to the last bit."""
    recipe = dataclasses.replace(RECIPE, epochs=4)
    for kind in KINDS:
        if unsupported(owner(), kind=kind):
            continue
        run, trace, predictions = toy_train(owner(), kind=kind, recipe=recipe)
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(Path(folder) / "checkpoint", every=5)
            toy_train(owner(), kind=kind, recipe=recipe, checkpoints=checkpoints)
            again, resumed, predicted = toy_train(owner(), kind=kind, recipe=recipe, checkpoints=checkpoints)
        assert resumed.resumed_at == 10, f"it went on from step {resumed.resumed_at}, not 10 ({kind})"
        hint = "what changes from step to step belongs into `state`"
        assert same(run, again), f"its weights differ after a checkpoint; {hint} ({kind})"
        for name, values in trace.steps.items():
            assert np.array_equal(values, resumed.steps[name]), f"its {name} differs after a checkpoint; {hint}"
        assert np.array_equal(predictions, predicted), f"its predictions differ after a checkpoint; {hint} ({kind})"
        assert np.array_equal(trace.sketches, resumed.sketches), f"its weights' sketches differ ({kind})"
        passes = [(t.forwards_per_step, t.backwards_per_step) for t in (trace, resumed)]
        assert passes[0] == passes[1], f"its counted passes differ: {passes}"


def arranges(owner: type[Method]) -> None:
    """Without padding, and with a trimmed vocabulary where it says so, it trains as it does with padding."""
    if owner.arrangement == ARRANGEMENTS[0]:
        raise Skip("it declares that it works with padding only")
    # Masks of another shape would be other masks: compared is what is left without dropout.
    method = owner(dropout=Dropout.ALL_OFF)
    methods = [method] if not unsupported(method) else [owner(), _twin(method)]
    for architecture in (name for name in ARCHITECTURES if name in packing.MODEL_TYPES):
        for arrangement in ARRANGEMENTS[1 : ARRANGEMENTS.index(owner.arrangement) + 1]:
            if unsupported(methods, architecture):
                continue
            far, redrawn = _distance(methods, architecture, arrangement)
            if far > CLOSE and redrawn and owner.neutral is not None:  # so would its own draws be others
                far, _ = _distance(owner(**owner.neutral, dropout=Dropout.ALL_OFF), architecture, arrangement)
            assert far < CLOSE, f"{architecture}, {arrangement}: it ends {far:.1e} from where it ends with padding"


def _distance(methods: Method | list[Method], architecture: str, arrangement: str) -> tuple[float, bool]:
    """Largest distance of losses and predictions from those with padding, and whether methods drew other numbers."""
    usual, trace, predictions = toy_train(methods, architecture)
    run, again, predicted = toy_train(
        methods, architecture, recipe=dataclasses.replace(RECIPE, arrangement=arrangement)
    )
    assert _shape(run.model) == _shape(usual.model), f"{architecture}, {arrangement}: something is left behind"
    pairs = [(values, again.steps[name]) for name, values in trace.steps.items()] + [(predictions, predicted)]
    streams = [{k: v for k, v in one.streams().items() if k.startswith("method ")} for one in (usual, run)]
    redrawn = any(not torch.equal(state, streams[1][name]) for name, state in streams[0].items())
    return max(float(np.abs(left - right).max()) for left, right in pairs), redrawn


def evaluation_is_clean(owner: type[Method]) -> None:
    """Evaluation is free of noise, draws nothing, and is that of the plain model."""
    run, stack = toy_run(owner())
    try:
        train(run, stack)
        before = torch.get_rng_state()
        with stack.evaluating(run):
            first, second = evaluation.predict(run, run.examples), evaluation.predict(run, run.examples)
        assert np.array_equal(first, second), "two evaluations of the same weights differ"
        assert torch.equal(before, torch.get_rng_state()), "evaluation draws from the global random stream"
        with stack.evaluating(run):
            held = {name: parameter.detach().clone() for name, parameter in run.params.items()}
    finally:
        stack.teardown(run)
    with torch.no_grad():
        for name, weight in run.params.items():
            weight.copy_(held[name])
    assert np.array_equal(first, evaluation.predict(run, run.examples)), "the plain model predicts something else"


def leaves_a_plain_model(owner: type[Method]) -> None:
    """After teardown nothing of it is left: names, modules, hooks; the saved model loads without this package."""
    from transformers import AutoModelForSequenceClassification

    for prepare in (lambda run, stack: None, train):
        run, stack = toy_run(owner())
        shape = _shape(run.model)
        prepare(run, stack)
        stack.teardown(run)
        assert _shape(run.model) == shape, "teardown leaves other modules, names, hooks or frozen weights behind"
        assert {id(p) for p in run.model.parameters()} == {id(p) for p in run.params.values()}, (
            "parameters were replaced"
        )
    with tempfile.TemporaryDirectory() as folder:
        run.model.save_pretrained(folder)  # type: ignore[operator]
        loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    batch = run.examples.batch(range(4), CPU)
    with torch.no_grad():
        equal = torch.equal(loaded.eval()(**batch.inputs).logits, run.model.eval()(**batch.inputs).logits)
    assert equal, "the saved model predicts something else"


def _shape(model: nn.Module) -> list[Any]:
    modules = [
        (name, type(module), len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        for name, module in model.named_modules()
    ]
    return [modules, list(model.state_dict()), [(name, p.requires_grad) for name, p in model.named_parameters()]]


def declares_its_passes(owner: type[Method]) -> None:
    """It takes as many forward and backward passes per step as `passes` declares."""
    declared = owner().passes(Passes())
    _, trace, _ = toy_train(owner())
    counted = (trace.forwards_per_step, trace.backwards_per_step)
    assert counted == (declared.forwards, declared.backwards), f"declared {declared}, counted {counted}"


def declares_its_memory(owner: type[Method], tolerance: float = 0.01) -> None:
    """What a step saves for its backward pass, and what is kept all along, is what `memory` declares.

    Args:
        owner: the method's class.
        tolerance: as a share of what a vanilla step saves.
    """
    declared = owner().memory(Memory())
    run, stack = toy_run(owner())
    plain, _ = toy_run(_twin(owner()))
    try:
        train(run, stack)
        saved, kept = saved_activation_bytes(run), kept_bytes(run, stack)
        sizes = memory_sizes(plain, {name for name, weight in run.params.items() if not weight.requires_grad})
    finally:
        stack.teardown(run)
    for what, found, expected in zip(("saves", "keeps"), (saved, kept), expected_bytes(declared, sizes), strict=True):
        excess = found - expected
        if not (what == "saves" and sizes["P_frozen"]):  # with frozen weights the formula is a bound
            excess = abs(excess)
        assert excess <= tolerance * sizes["F"] + 0.5, (
            f"it {what} {found:,} bytes where {declared} says {expected:,.0f}; sizes: {sizes}"
        )


def survives_checkpointing(owner: type[Method]) -> None:
    """Gradient checkpointing changes nothing, to the last bit, or is declared unsupported."""
    recipe = dataclasses.replace(RECIPE, gradient_checkpointing=True)
    if reason := unsupported(owner(), recipe=recipe):
        raise Skip(reason)
    plain, checkpointed = toy_train(owner())[0], toy_train(owner(), recipe=recipe)[0]
    assert same(plain, checkpointed), "with gradient checkpointing it trains to other weights"


def accumulates(owner: type[Method]) -> None:
    """Cutting the batch into micro-batches gives the same weights to 5e-7, with the same draws, in all its forms."""
    reasons: list[str] = []
    trials: list[tuple[dict[str, Any], Kind]] = [(parameters, "classification") for parameters in forms(owner)]
    for parameters, kind in (*trials, ({}, "regression")):
        worst = micro_batch_difference(owner, parameters, kind)
        if isinstance(worst, str):
            reasons.append(worst)
            continue
        shown = ", ".join(f"{name}={as_text(value)}" for name, value in parameters.items()) or "its defaults"
        assert worst < 5e-7, (
            f"with {shown} ({kind}) weights differ by {worst:.1e} between 1 × 8 and 4 × 2 examples per step"
        )
    if len(reasons) == len(trials) + 1:
        raise Skip(reasons[0])


def gradient_is_that_of_the_loss(owner: type[Method]) -> None:
    """What its backward passes leave in the weights' gradients is the gradient of the loss that it returns."""
    for kind in KINDS:
        if not unsupported(owner(), kind=kind):
            check_gradient([owner()], [owner()], kind=kind)


class _DeclaredStep(TrainingStep):
    """A step whose early backward passes free no graph, so that the returned loss can be derived as a whole."""

    def backward(self, part: Tensor, view: View) -> Tensor:
        part.backward(retain_graph=True)  # type: ignore[no-untyped-call]  # what reads the gradient of an input needs it
        return part


def check_gradient(
    methods: list[Method], again: list[Method], architecture: str = "bert", kind: Kind = "classification"
) -> None:
    """A stack's gradient, early backward passes and all, equals `autograd.grad` of the loss that it returns.

    Args:
        methods: the stack.
        again: an equal one.
    """
    found: list[list[Tensor]] = []
    for stacked, maker in ((methods, TrainingStep), (again, _DeclaredStep)):
        run, stack = toy_run(stacked, architecture, kind)
        try:
            stack.setup(run)
            stack.optimizer(make_optimizer(run), run)
            run.model.train()
            weights = [weight for weight in run.params.values() if weight.requires_grad]
            with random_state_kept(CPU):
                torch.manual_seed(1)
                step = maker(run, run.examples.batch(range(6), CPU))
                loss = step.objective().loss
            if maker is TrainingStep:
                step.backward(loss, View())
                found.append([torch.zeros_like(w) if w.grad is None else w.grad for w in weights])
            else:
                found.append(list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)))
        finally:
            stack.teardown(run)
    label = "+".join(method.name for method in methods)
    largest = max(float(gradient.abs().max()) for gradient in found[1])
    worst = max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))
    assert worst <= 1e-5 * max(largest, 1e-3), (
        f"{label} on {architecture}, {kind}: the gradient differs by {worst:.1e} from that of the loss it returns"
    )


def pairs(owner: type[Method]) -> None:
    """With every other method, in both orders, it trains the same twice and leaves a plain model, or says why not."""
    for name in registry.names("methods"):
        other = registry.method_class(name)
        if name in (owner.name, registry.BASELINE) or owner.name == registry.BASELINE:
            continue
        for left, right in ((owner, other), (other, owner)):
            check_pair(left, right)


def check_pair(
    left: type[Method],
    right: type[Method],
    architecture: str = "bert",
    kind: Kind = "classification",
    *,
    thorough: bool = True,
) -> None:
    """One ordered pair: trains to finite numbers with the declared passes, and leaves a plain model.

    Args:
        thorough: also trains a second time to the same numbers, and checks the gradient against the loss.
    """
    label = f"{left.name}+{right.name} on {architecture}, {kind}"
    if unsupported([left(), right()], architecture, kind):
        return
    recipe = PAIR_RECIPE if thorough else dataclasses.replace(PAIR_RECIPE, steps=1)
    first, trace, predictions = toy_train([left(), right()], architecture, kind, recipe)
    assert np.isfinite(trace.steps["loss"]).all(), f"{label}: the loss is not finite"
    assert np.isfinite(predictions).all(), f"{label}: the predictions are not finite"
    if thorough:
        second, _, again = toy_train([left(), right()], architecture, kind, recipe)
        assert same(first, second), f"{label}: two equal runs differ"
        assert np.array_equal(predictions, again), f"{label}: two equal runs predict differently"
        check_gradient([left(), right()], [left(), right()], architecture, kind)
    declared = Stack([left(), right()]).passes(Passes())
    assert (trace.forwards_per_step, trace.backwards_per_step) == (declared.forwards, declared.backwards), (
        f"{label}: declared {declared}, counted {trace.forwards_per_step} + {trace.backwards_per_step}"
    )
    plain, _ = toy_run([left(), right()], architecture, kind)
    assert _shape(first.model) == _shape(plain.model), f"{label}: teardown leaves something behind"


CHECKS: tuple[Callable[[type[Method]], None], ...] = (
    has_a_card,
    can_be_searched,
    trains_everywhere,
    neutral_is_vanilla,
    is_alive,
    is_deterministic,
    resumes,
    arranges,
    evaluation_is_clean,
    leaves_a_plain_model,
    declares_its_passes,
    declares_its_memory,
    survives_checkpointing,
    accumulates,
    gradient_is_that_of_the_loss,
    pairs,
)


@dataclass(frozen=True)
class Check:
    """What came of one check: `ok`, `FAIL` or `skip`, and why."""

    name: str
    outcome: str
    detail: str = ""


def check_method(owner: type[Method]) -> Iterator[Check]:
    """Run every check on a method; an exception in the method is a failed check."""
    torch.set_num_threads(1)
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            if check not in (has_a_card, can_be_searched, trains_everywhere) and (reason := unsupported(owner())):
                raise Skip(reason)
            check(owner)
        except Skip as skip:
            yield Check(name, "skip", str(skip))
        except AssertionError as failure:
            yield Check(name, "FAIL", str(failure))
        except (Exception, SystemExit) as error:  # a method may call sys.exit
            yield Check(name, "FAIL", f"{type(error).__name__}: {error}")
        else:
            yield Check(name, "ok")
