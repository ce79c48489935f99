"""These checks are the contract that every method keeps: for this project's tests, and for authors of plugins.

    finetune-bench check my_method.py

A check takes a method's class and trains tiny random encoders for a few steps, on a CPU or on the device that it is
given; all of them take some seconds. It raises AssertionError with a sentence, or Skip where it does not apply.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune_bench import device as devices
from finetune_bench import registry
from finetune_bench.method.base import Method
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.former import PAGE, former_code
from finetune_bench.method.stack import Stack
from finetune_bench.metrics import Kind
from finetune_bench.model import unpadding
from finetune_bench.model.dropout import Dropout
from finetune_bench.parameters import as_text, check_fields
from finetune_bench.recipe import BATCH_LAYOUTS
from finetune_bench.study.search import settings
from finetune_bench.testing.accumulation import forms, micro_batch_difference
from finetune_bench.testing.names import misspelt
from finetune_bench.testing.stacks import check_gradient, check_pair
from finetune_bench.testing.toys import (
    ARCHITECTURES,
    CPU,
    KINDS,
    RECIPE,
    SEED,
    same,
    shape,
    toy_facts,
    toy_run,
    toy_train,
    unsupported,
)
from finetune_bench.training import evaluation
from finetune_bench.training.checkpoint import Checkpoints
from finetune_bench.training.loop import train
from finetune_bench.training.memory import expected_bytes, kept_bytes, memory_sizes, saved_activation_bytes

# Losses and predictions that differ by rounding alone are this close.
CLOSE = 1e-3


class Skip(Exception):
    """A check raises this where it does not apply."""


def _twin(method: Method) -> Method:
    """Return vanilla with the same dropout."""
    return registry.method_class(registry.BASELINE)(dropout=method.dropout)


def _skip_unsupported(owner: type[Method]) -> None:
    """Skip what trains the defaults on the tiny BERT, where these can't."""
    if reason := unsupported(owner()):
        raise Skip(reason)


def has_a_card(owner: type[Method]) -> None:
    """The file's docstring is the method's card, and the id follows the convention."""
    card = sys.modules[owner.__module__].__doc__ or owner.__doc__ or ""
    assert (words := len(card.split())) >= 10, (
        f"its file's docstring has {words} words; ten at least should say what it does, and its formula"
    )
    assert re.fullmatch("[a-z0-9_]+", owner.name), f"the name '{owner.name}' should be of lower-case letters, digits, _"


def is_in_present_form(owner: type[Method]) -> None:
    """Its code uses nothing of the contract's earlier versions, not even what still works, and misspells no name."""
    advice = former_code(owner)
    assert not advice, f"{'; '.join(advice)} ({PAGE})"
    assert not (advice := misspelt(owner)), " ".join(advice)


def can_be_searched(owner: type[Method]) -> None:
    """Every value that a search may draw is accepted."""
    if not owner.search_space:
        raise Skip("none of its parameters has a search=; a search tries learning rates only")
    check_fields(owner)
    tried = settings(owner.name, 5, 2e-5)
    assert len(set(tried)) == 5, f"five settings of a search are only {len(set(tried))} different ones"


def trains_everywhere(owner: type[Method], device: torch.device = CPU) -> str:
    """On every architecture, for classification and regression, it trains to finite numbers or says why it can't.

    Args:
        owner: the method's class.
        device: the device to train on.

    Returns:
        What it refused, and why; "" for nothing.
    """
    trained, refused = False, dict[str, list[tuple[str, Kind]]]()
    for architecture in ARCHITECTURES:
        for kind in KINDS:
            if reason := unsupported(owner(), architecture, kind):
                refused.setdefault(reason, []).append((architecture, kind))
                continue
            _, result, predictions = toy_train(owner(), architecture, kind, device=device)
            assert np.isfinite(result.steps["loss"]).all(), f"its loss is not finite on {architecture}, {kind}"
            assert np.isfinite(predictions).all(), f"its predictions are not finite on {architecture}, {kind}"
            trained = True
    if not trained:
        raise Skip("it supports none of the tiny models")
    return "; ".join(
        f"refused {_in_words(cells)}: {reason.removeprefix(f'{owner.name}: ')}" for reason, cells in refused.items()
    )


def _in_words(cells: list[tuple[str, Kind]]) -> str:
    """Name architectures and kinds of task: the kind alone where every architecture has it."""
    for kind in KINDS:
        if cells == [(architecture, kind) for architecture in ARCHITECTURES]:
            return kind
    return ", ".join(f"{architecture} for {kind}" for architecture, kind in cells)


def neutral_is_vanilla(owner: type[Method], device: torch.device = CPU) -> None:
    """At its neutral setting it equals vanilla with the same dropout, to the last bit."""
    if owner.neutral is None:
        raise Skip("it declares no neutral setting")
    for kind in KINDS:
        if unsupported(owner(), kind=kind):
            continue
        method = owner(**owner.neutral)
        run, result, predictions = toy_train(method, kind=kind, device=device)
        twin, twin_trace, twin_predictions = toy_train(_twin(method), kind=kind, device=device)
        assert same(run, twin), f"with {dict(owner.neutral)} its weights differ from vanilla's ({kind})"
        at = f"with {dict(owner.neutral)} its"
        assert np.array_equal(result.steps["loss"], twin_trace.steps["loss"]), (
            f"{at} losses differ from vanilla's ({kind})"
        )
        assert np.array_equal(predictions, twin_predictions), f"{at} predictions differ from vanilla's ({kind})"
        _check_neutral_losses(method, kind, device)


def _check_neutral_losses(method: Method, kind: Kind, device: torch.device) -> None:
    """Ask for the losses of single examples at the neutral setting, where a training doesn't: they have to be kept."""
    if type(method).losses is Method.losses:
        return
    run, stack = toy_run(method, kind=kind, device=device)
    try:
        stack.setup(run)
        batch = next(run.batches("check"))
        output = run.forward(batch)
        losses = run.task.losses(output, batch.labels).detach()
        change = float((method.losses(run, output, losses).detach() - losses).abs().max())
    finally:
        stack.teardown(run)
    assert change < CLOSE, f"with {dict(method.neutral or {})} its `losses` change by {change:.1e} ({kind})"


def is_alive(owner: type[Method], device: torch.device = CPU) -> None:
    """With its defaults it does something: weights or predictions differ from vanilla's with the same dropout."""
    if owner.name == registry.BASELINE:
        raise Skip("it is vanilla")
    _skip_unsupported(owner)
    # What is drawn seldom, as a layer to skip, may not be drawn at all in a run this short.
    for seed in range(SEED, SEED + (8 if owner().stochastic else 1)):
        run, _, predictions = toy_train(owner(), device=device, seed=seed)
        twin, _, twin_predictions = toy_train(_twin(owner()), device=device, seed=seed)
        assert same(run, twin) or not owner.observer, "its class says `observer = True`, and it trains to other weights"
        if not (same(run, twin) and np.array_equal(predictions, twin_predictions)):  # An average shows in these only.
            return
    if owner().at_neutral and (said := owner().warning(toy_facts(Stack([owner()])))):
        raise Skip(said)
    raise AssertionError("with its defaults it does nothing at all")


def is_deterministic(owner: type[Method], device: torch.device = CPU) -> None:
    """The same seed twice gives the same losses, weights and predictions, to the last bit."""
    _skip_unsupported(owner)
    first, second = toy_train(owner(), device=device), toy_train(owner(), device=device)
    assert np.array_equal(first[1].steps["loss"], second[1].steps["loss"]), "its losses differ between two equal runs"
    assert same(first[0], second[0]), "its weights differ between two equal runs"
    assert np.array_equal(first[2], second[2]), "its predictions differ between two equal runs"


def resumes(owner: type[Method], device: torch.device = CPU) -> None:
    """Gone on with from a checkpoint in its middle, it ends as an undisturbed run does, to the last bit."""
    recipe = dataclasses.replace(RECIPE, epochs=4)
    for kind in KINDS:
        if unsupported(owner(), kind=kind):
            continue
        run, result, predictions = toy_train(owner(), kind=kind, recipe=recipe, device=device)
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(Path(folder) / "checkpoint", every=5, owner="check")
            toy_train(owner(), kind=kind, recipe=recipe, checkpoints=checkpoints, device=device)
            again, resumed, predicted = toy_train(
                owner(), kind=kind, recipe=recipe, checkpoints=checkpoints, device=device
            )
        assert resumed.resumed_at == 10, f"it went on from step {resumed.resumed_at}, not 10 ({kind})"
        hint = "what changes from step to step belongs into `state`"
        assert same(run, again), f"its weights differ after a checkpoint; {hint} ({kind})"
        for name, values in result.steps.items():
            assert np.array_equal(values, resumed.steps[name], equal_nan=True), f"its {name} differs; {hint}"
        assert np.array_equal(predictions, predicted), f"its predictions differ after a checkpoint; {hint} ({kind})"
        assert np.array_equal(result.sketches, resumed.sketches), f"its weights' sketches differ ({kind})"
        passes = [(t.forwards_per_step, t.backwards_per_step) for t in (result, resumed)]
        assert passes[0] == passes[1], f"its counted passes differ: {passes}"


def arranges(owner: type[Method], device: torch.device = CPU) -> None:
    """Without padding, and with a trimmed vocabulary where it says so, it trains as it does with padding."""
    if owner.batch_layout == BATCH_LAYOUTS[0]:
        raise Skip("without a `batch_layout` of its class its batches are padded")
    # Masks of another shape would be other masks: compared is what is left without dropout.
    method = owner(dropout=Dropout.ALL_OFF)
    methods = [method] if not unsupported(method) else [owner(), _twin(method)]
    layouts = BATCH_LAYOUTS[1 : BATCH_LAYOUTS.index(owner.batch_layout) + 1]
    for architecture in (name for name in ARCHITECTURES if name in unpadding.MODEL_TYPES):
        # The furthest layout has in it what the others do: one architecture tells which of them fails.
        for batch_layout in layouts if architecture == "bert" else layouts[-1:]:
            if unsupported(methods, architecture):
                continue
            distance, redrawn = _distance(methods, architecture, batch_layout, device=device)
            # Its own draws are others, too, where it draws for other shapes: compared is what is left without them.
            if distance > CLOSE and redrawn and owner.neutral is not None:
                distance, _ = _distance(
                    owner(**owner.neutral, dropout=Dropout.ALL_OFF), architecture, batch_layout, device=device
                )
            assert distance < CLOSE, (
                f"{architecture}, {batch_layout}: it ends {distance:.1e} from where it ends with padding"
            )


def _distance(
    methods: Method | list[Method], architecture: str, batch_layout: str, device: torch.device
) -> tuple[float, bool]:
    """Return how far losses and predictions are from those with padding, and whether methods drew other numbers."""
    usual, result, predictions = toy_train(methods, architecture, device=device)
    run, again, predicted = toy_train(
        methods, architecture, recipe=dataclasses.replace(RECIPE, batch_layout=batch_layout), device=device
    )
    assert shape(run.model) == shape(usual.model), f"{architecture}, {batch_layout}: something is left behind"
    pairs = [(values, again.steps[name]) for name, values in result.steps.items()] + [(predictions, predicted)]
    streams = [{k: v for k, v in trained.streams().items() if k.startswith("method ")} for trained in (usual, run)]
    # On a CPU a stream that drew as many numbers draws the same ones. A GPU counts its draws in blocks, and where a
    # number lies in a tensor decides which it is: draws of two shapes can differ, and leave the stream in one state.
    redrawn = any(
        device.type != "cpu" or not torch.equal(state, streams[1][name]) for name, state in streams[0].items()
    )
    # A log that both leave out at a step is NaN in both; where only one does, NaN is the answer, which no limit holds.
    gaps = [np.where(np.isnan(left) & np.isnan(right), 0.0, np.abs(left - right)).max() for left, right in pairs]
    return float(np.max(gaps)), redrawn


def evaluation_is_clean(owner: type[Method], device: torch.device = CPU) -> None:
    """Evaluation is free of noise, draws nothing, and is that of the plain model."""
    _skip_unsupported(owner)
    run, stack = toy_run(owner(), device=device)
    try:
        train(run)
        before = devices.random_state(device)
        with stack.evaluating(run):
            first, second = evaluation.predict(run, run.examples), evaluation.predict(run, run.examples)
        assert np.array_equal(first, second), "two evaluations of the same weights differ"
        for name, state in devices.random_state(device).items():
            assert torch.equal(before[name], state), "evaluation draws from the global random stream"
        with stack.evaluating(run):
            held = {name: parameter.detach().clone() for name, parameter in run.params.items()}
    finally:
        stack.teardown(run)
    with torch.no_grad():
        for name, weight in run.params.items():
            weight.copy_(held[name])
    assert np.array_equal(first, evaluation.predict(run, run.examples)), "the plain model predicts something else"


def leaves_a_plain_model(owner: type[Method], device: torch.device = CPU) -> None:
    """After teardown nothing of it is left: names, modules, hooks; the saved model loads without this package."""
    _skip_unsupported(owner)
    # Not at the top: importing transformers takes seconds, and a single check can be had without it.
    from transformers import AutoModelForSequenceClassification

    for prepare in (lambda run: None, train):
        run, stack = toy_run(owner(), device=device)
        before = shape(run.model)
        prepare(run)
        stack.teardown(run)
        assert shape(run.model) == before, "teardown leaves other modules, names, hooks or frozen weights behind"
        assert {id(p) for p in run.model.parameters()} == {id(p) for p in run.params.values()}, (
            "parameters were replaced"
        )
    with tempfile.TemporaryDirectory() as folder:
        run.model.to(CPU).save_pretrained(folder)  # type: ignore[operator]
        loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    batch = run.examples.batch(range(4), CPU)
    with torch.no_grad():
        equal = torch.equal(loaded.eval()(**batch.inputs).logits, run.model.eval()(**batch.inputs).logits)
    assert equal, "the saved model predicts something else"


def declares_its_passes(owner: type[Method], device: torch.device = CPU) -> None:
    """It takes as many forward and backward passes per step as `passes` declares."""
    _skip_unsupported(owner)
    declared = owner().passes(Passes())
    _, result, _ = toy_train(owner(), device=device)
    counted = (result.forwards_per_step, result.backwards_per_step)
    assert counted == (declared.forwards, declared.backwards), f"declared {declared}, counted {counted}"


def declares_its_memory(owner: type[Method], device: torch.device = CPU, tolerance: float = 0.01) -> None:
    """What a step saves for its backward pass, and what is kept all along, is what `memory` declares.

    Args:
        owner: the method's class.
        device: the device to train on.
        tolerance: the largest difference, as a share of what a vanilla step saves.
    """
    _skip_unsupported(owner)
    declared = owner().memory(Memory())
    run, stack = toy_run(owner(), device=device)
    plain, _ = toy_run(_twin(owner()), device=device)
    try:
        train(run)
        saved, kept = saved_activation_bytes(run), kept_bytes(run)
        sizes = memory_sizes(plain, {name for name, weight in run.params.items() if not weight.requires_grad})
    finally:
        stack.teardown(run)
    due = expected_bytes(declared, sizes)
    for what, measured, expected in zip(("saves", "keeps"), (saved, kept), due, strict=True):
        # With frozen weights the formula of what is saved is a bound.
        is_bound = what == "saves" and sizes["P_frozen"]
        excess = measured - expected if is_bound else abs(measured - expected)
        assert excess <= tolerance * sizes["F"] + 0.5, (
            f"it {what} {measured:,} bytes where {declared} says {expected:,.0f}; sizes: {sizes}"
        )


def survives_checkpointing(owner: type[Method], device: torch.device = CPU) -> None:
    """Gradient checkpointing changes nothing, to the last bit, or is declared unsupported."""
    recipe = dataclasses.replace(RECIPE, gradient_checkpointing=True)
    if reason := unsupported(owner(), recipe=recipe):
        raise Skip(reason)
    plain, checkpointed = toy_train(owner(), device=device)[0], toy_train(owner(), recipe=recipe, device=device)[0]
    assert same(plain, checkpointed), "with gradient checkpointing it trains to other weights"


def accumulates(owner: type[Method], device: torch.device = CPU) -> None:
    """Cutting the batch into micro-batches gives the same weights to 5e-7, with the same draws, in all its forms."""
    reasons: list[str] = []
    trials: list[tuple[dict[str, Any], Kind]] = [(parameters, "classification") for parameters in forms(owner)]
    for parameters, kind in (*trials, ({}, "regression")):
        worst = micro_batch_difference(owner, parameters, kind, device=device)
        if isinstance(worst, str):
            reasons.append(worst)
            continue
        shown = ", ".join(f"{name}={as_text(value)}" for name, value in parameters.items()) or "its defaults"
        assert worst < 5e-7, (
            f"with {shown} ({kind}) weights differ by {worst:.1e} between 1 × 8 and 4 × 2 examples per step"
        )
    if len(reasons) == len(trials) + 1:
        raise Skip(reasons[0])


def gradient_is_that_of_the_loss(owner: type[Method], device: torch.device = CPU) -> None:
    """What its backward passes leave in the weights' gradients is the gradient of the loss that it returns."""
    for kind in KINDS:
        if not unsupported(owner(), kind=kind):
            check_gradient([owner()], [owner()], kind=kind, device=device)


def pairs(owner: type[Method], device: torch.device = CPU) -> None:
    """With every other method, in both orders, it trains the same twice and leaves a plain model, or says why not."""
    for name in registry.names("methods"):
        other = registry.method_class(name)
        if name in (owner.name, registry.BASELINE) or owner.name == registry.BASELINE:
            continue
        for left, right in ((owner, other), (other, owner)):
            check_pair(left, right, device=device)


# These look at the class alone; all others take the device to train on, too.
_OF_THE_CLASS = (has_a_card, is_in_present_form, can_be_searched)

CHECKS: tuple[Callable[..., str | None], ...] = (
    *_OF_THE_CLASS,
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
    """A Check holds the outcome of one check, `ok`, `FAIL` or `skip`, and the reason; and its error, if it failed."""

    name: str
    outcome: str
    detail: str = ""
    error: BaseException | None = None


def check_method(
    owner: type[Method], device: torch.device = CPU, checks: Sequence[Callable[..., str | None]] = CHECKS
) -> Iterator[Check]:
    """Run checks on a method; an exception in the method is a failed check.

    Args:
        owner: the method's class.
        device: the device to train on. Off the CPU only deterministic kernels are allowed: checks ask for equal bits.
        checks: which of `CHECKS` to run.
    """
    devices.prepare(device, threads=1, deterministic=device.type != "cpu")
    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            if check in _OF_THE_CLASS:
                detail = check(owner)
            elif check is not trains_everywhere and (reason := unsupported(owner())):
                raise Skip(reason)
            else:
                detail = check(owner, device)
        except Skip as skip:
            yield Check(name, "skip", str(skip))
        except AssertionError as failure:
            yield Check(name, "FAIL", str(failure), failure)
        except (Exception, SystemExit) as error:  # a method may call sys.exit
            yield Check(name, "FAIL", f"{type(error).__name__}: {error}", error)
        else:
            yield Check(name, "ok", detail or "")
