"""The checks of a study that need its data and its checkpoints, but no training; each is one step of `make_plan`.

What is wrong is told before any cell runs. A method that can't work in any cell of the study is an error; cells that
can't run while others of their method can are given back with the reason.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from finetune_bench import device as devices
from finetune_bench import registry
from finetune_bench.errors import DataError, ModelError, Unsupported, UsageError
from finetune_bench.model import gguf, packaged, pretrained, unpadding, weights
from finetune_bench.printable import brief
from finetune_bench.recipe import AUTO, BATCH_LAYOUTS
from finetune_bench.runner.inputs import cuts, dropout_stays_on, facts_of, load_data
from finetune_bench.runner.probe import try_out
from finetune_bench.study import grid
from finetune_bench.study.attribution import label_of
from finetune_bench.study.grid import Cell
from finetune_bench.study.study import Study
from finetune_bench.task import TaskData
from finetune_bench.training.optimizer import muon_matrices

# Where methods say that they put noise; it goes in through `inputs_embeds`.
NOISED = "token embeddings"


def check_devices(study: Study) -> list[torch.device]:
    """Return the devices that the study may use.

    Raises:
        UsageError: not a device's name, none where this machine can't tell it, or no device for its precision.
        MachineError: the machine has no such device.
    """
    # Elsewhere there may be what this machine lacks.
    chosen = devices.choose(study.device, elsewhere=study.runs_elsewhere)
    if study.device is None and study.runs_elsewhere and chosen[0].type == "cpu":
        raise UsageError(
            f"--executor {study.executor}: this machine has no GPU, which tells nothing of those that will run the "
            "cells; give --device cuda or --device cpu."
        )
    if study.recipe.precision == "fp16" and chosen[0].type == "cpu":
        raise UsageError("--precision fp16 needs a CUDA device: a CPU has no loss scaling for it. Use fp32 or bf16.")
    if study.recipe.precision == "tf32" and (
        chosen[0].type == "cpu" or (not study.runs_elsewhere and not all(devices.has_tf32(device) for device in chosen))
    ):
        raise UsageError(
            "--precision tf32 needs a CUDA device of compute capability 8.0 or more; others would compute in fp32, and "
            "the study would say tf32. Use fp32 or bf16."
        )
    return chosen


def check_task_names(study: Study) -> tuple[str, ...]:
    """Return the tasks, each in its one spelling: a file's name and options, however they were typed, make one cell.

    Raises:
        UsageError: a task is unknown, or given twice.
    """
    names = [registry.task(task).name for task in study.tasks]
    _refuse_doubles("--tasks", names)
    return tuple(names)


def check_models(study: Study, tell: Callable[[str], None] = lambda text: None) -> dict[str, str]:
    """Return what identifies every model's weights and how they are taken, by the model's name.

    Args:
        study: the study.
        tell: is told which of several checkpoints is tried, before it is.

    Raises:
        UsageError: a checkpoint isn't there, can't be used or is given twice, or the study's sequences are too long.
    """
    _refuse_doubles("--model", [pretrained.label(name) for name in study.models])
    identities = {}
    for name in study.models:
        if len(study.models) > 1:
            tell(f"Trying {pretrained.label(name)} on three texts ...")
        identities[name] = _check_model(name, study)
        if same := [other for other in identities if other != name and identities[other] == identities[name]]:
            raise UsageError(
                f"--model: '{brief(same[0])}' and '{brief(name)}' have the same weights, so that they would be one set "
                "of runs; give one of them."
            )
    return identities


def _check_model(name: str, study: Study) -> str:
    """Check a checkpoint, from its folder to a pass on three texts, and return what identifies it.

    Raises:
        ModelError: it can't be used.
    """
    pretrained.fingerprint(name)
    pretrained.check_fit(name, study.recipe.max_length)
    weights.taken(name)
    for task in study.tasks if study.keep_head else ():
        weights.check_head(name, registry.task(task).labels)
    try_out(name, study.recipe.max_length)
    return weights.identity(name, keep_head=study.keep_head)


def notes_on_licences(study: Study) -> list[str]:
    """Return under which licences the study's data and checkpoints may be used, where somebody says: one each."""
    licences: dict[str, list[str]] = {}
    for name in study.tasks:
        if licence := registry.task(name).licence:
            licences.setdefault(f"{licence}.", []).append(name)
    notes = [f"Licence of the data of {', '.join(names)}: {licence}" for licence, names in licences.items()]
    models = [name for name in study.models if pretrained.is_packaged(name)]
    return notes + [f"Licence of the weights of {name}: {packaged.MODELS[name].licence}." for name in models]


def notes_on_models(study: Study) -> list[str]:
    """Return what a user should know of the study's checkpoints, one sentence each."""
    notes = []
    for name in study.models:
        label, tokenizer = pretrained.label(name), pretrained.tokenizer(name)
        if tokenizer.pad_token_id == tokenizer.eos_token_id:
            notes.append(
                f"{label}: the tokenizer has no padding token; its end token, {tokenizer.eos_token}, stands for it."
            )
        if file := pretrained.gguf_file(name):
            notes += [f"{file.name}: {note}" for note in gguf.notes(file)]
        if not try_out(name, study.recipe.max_length).ignores_padding:
            notes.append(f"Warning: '{label}': what it predicts of a text changes with the padding beside it.")
    return notes


def check_analyses(study: Study) -> list[str]:
    """Check the analyses of a study and the data that they read, and return what they leave out.

    Raises:
        UsageError: one is unknown, wrong, given twice, or can be made of no task of the study.
        DataError: its data are missing or malformed.
    """
    notes: list[str] = []
    made = [registry.make_analysis(text) for text in study.analyses]
    _refuse_doubles("--analyses", [analysis.name for analysis in made])
    root = study.data_root.resolve() if study.data_root else None
    for analysis in made:
        reasons = {task: analysis.unsupported(registry.task(task)) for task in study.tasks}
        for task, reason in reasons.items():
            if reason is None:
                for model in study.models:
                    analysis.check(registry.task(task), root, model)
            elif all(reasons.values()):
                raise UsageError(f"--analyses: '{analysis.name}' can be made of no task of the study: {reason}.")
            else:
                notes.append(f"{analysis.name} is left out for {task}: {reason}.")
    return notes


def _refuse_doubles(option: str, names: Sequence[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(
                f"{option}: two of them would be called '{name}' in the report; rename one, or give it once."
            )


def check_data(study: Study) -> dict[str, TaskData]:
    """Return the examples of every task, by the task's name.

    Raises:
        DataError: they can't be had.
    """
    if study.data_root is not None and not study.data_root.is_dir():
        raise DataError(
            f"--data-root: expected a folder laid out like the hub, but there is none at '{study.data_root}'."
        )
    logging.getLogger("datasets").setLevel(logging.ERROR)
    root = study.data_root.resolve() if study.data_root else None
    return {task: load_data(task, study.limit_train, root, grid.held_out(study))[1] for task in study.tasks}


def check_schedule(study: Study, data: dict[str, TaskData]) -> None:
    """Check that the learning rate of every task comes down again.

    Raises:
        UsageError: the warm-up is as long as the training.
    """
    for task, examples in data.items():
        steps = study.recipe.total_steps(len(examples.train))
        if study.recipe.warmup_steps(steps) >= steps:
            raise UsageError(
                f"--warmup {study.recipe.warmup:g}: '{task}' trains for {steps} steps, so the learning rate would "
                "never come down; give fewer warm-up steps, or a share below 1."
            )


def choose_batch_layout(study: Study, device: torch.device) -> tuple[str, list[str]]:
    """Choose how the batches of all cells are laid out, one way for a whole comparison.

    Off the CPU a study is padded unless it asks for less: see "On a GPU a study is padded by itself" in the decisions.

    Args:
        study: the study.
        device: a device of its cells.

    Returns:
        The batch layout, and a note that says what is in the way of a further one, if something is.

    Raises:
        UsageError: a method, a model or the recipe can't do what is asked for.
    """
    limits = {f"'{label_of(text)}'": registry.make_stack(text).batch_layout for text in grid.stacks(study)[0]}
    limits |= dict(_limit_of_model(name, study.recipe.max_length) for name in study.models)
    if study.recipe.gradient_checkpointing:
        limits["gradient checkpointing"] = "padded"
    if study.recipe.precision == "fp16":
        limits["fp16, which may leave a step out,"] = "unpadded"
    furthest = min(limits.values(), key=BATCH_LAYOUTS.index)
    in_the_way = ", ".join(name for name, limit in limits.items() if limit == furthest)
    if study.batch_layout == AUTO:
        if device.type != "cpu" and furthest != BATCH_LAYOUTS[0]:
            return BATCH_LAYOUTS[0], [
                f"Batches are {BATCH_LAYOUTS[0]}: on {device.type} the other layouts start more kernels, which takes "
                f"longer with a small model; --batch-layout {furthest} asks for the furthest that this study can do."
            ]
        if furthest == BATCH_LAYOUTS[-1]:
            return furthest, []
        return furthest, [f"Batches are {furthest}: {in_the_way} can do no more."]
    if BATCH_LAYOUTS.index(study.batch_layout) > BATCH_LAYOUTS.index(furthest):
        raise UsageError(
            f"--batch-layout {study.batch_layout}: {in_the_way} can be {furthest} at most; give that, or "
            "leave the option out."
        )
    return study.batch_layout, []


def _limit_of_model(name: str, max_length: int) -> tuple[str, str]:
    """Return a checkpoint's name, with the reason where there is something to say, and its furthest batch layout."""
    label, furthest = pretrained.label(name), unpadding.furthest(pretrained.config(name, 2))
    if furthest != BATCH_LAYOUTS[0] and not try_out(name, max_length).unpads:
        return f"'{label}', which attends otherwise without padding,", BATCH_LAYOUTS[0]
    return f"'{label}'", furthest


def check_methods(cells: Sequence[Cell]) -> list[tuple[Cell, str]]:
    """Return the cells that can't run, with the reason.

    Raises:
        Unsupported: no cell of a method can run.
    """
    reasons: dict[tuple[str, str, str], str | None] = {}
    for cell in cells:
        key = (cell.method, cell.model, cell.task)
        if key not in reasons:
            reasons[key] = why_impossible(cell)
    impossible = [(cell, reason) for cell in cells if (reason := reasons[cell.method, cell.model, cell.task])]
    if any(cell.held_out for cell in cells):  # of a search, other settings may do
        return impossible
    for method in {cell.method for cell, _ in impossible}:
        of_method = {reasons[key] for key in reasons if key[0] == method}
        if None not in of_method:
            told = "; ".join(sorted(brief(reason, 300) for reason in of_method))
            raise Unsupported(f"'{label_of(method)}' can't run in any cell of this study: {told}.")
    return impossible


def why_impossible(cell: Cell) -> str | None:
    """Return why a cell can't run: its method says so, its noise is below what the arithmetic resolves, or the model.

    Returns:
        Part of a sentence; None where the cell can run.

    Raises:
        UsageError: its method, asked what it supports, raises.
    """
    stack = cell.make_stack()
    facts = facts_of(cell, stack)
    if lost_noise := stack.lost_noise(facts):
        return lost_noise
    noised = [method.name for method in stack.methods if method.noises == NOISED]
    if noised and not try_out(cell.model, cell.recipe.max_length).embeds:
        kind = type(facts.skeleton).__name__
        return f"{noised[0]}: {kind} computes something else of its {NOISED} than of the tokens"
    if cell.recipe.gradient_checkpointing and not _can_checkpoint(facts.skeleton):
        return f"{type(facts.skeleton).__name__} has no gradient checkpointing"
    if cell.recipe.optimizer == "muon" and (reason := _why_no_matrices(facts.skeleton)):
        return reason
    return stack.unsupported(facts)


def _why_no_matrices(skeleton: torch.nn.Module) -> str | None:
    """Return why Muon has nothing to take in a model; None where it has."""
    try:
        matrices = muon_matrices(skeleton)
    except ModelError as error:
        return f"muon is for matrices of the layers, and {str(error).removesuffix('.')}"
    return None if matrices else f"muon is for matrices of the layers, and {type(skeleton).__name__} has none there"


def notes_on_muon(cells: Sequence[Cell]) -> list[str]:
    """Return what Muon steps of each model where nothing is frozen, one sentence each; none with other optimisers."""
    notes = []
    for cell in {cell.model: cell for cell in cells if cell.recipe.optimizer == "muon"}.values():
        skeleton = facts_of(cell, registry.make_stack(registry.BASELINE)).skeleton
        if _why_no_matrices(skeleton):
            continue
        matrices = muon_matrices(skeleton)
        numbers, of_all = (sum(p.numel() for p in weights) / 1e6 for weights in (matrices, skeleton.parameters()))
        notes.append(
            f"{pretrained.label(cell.model)}: muon steps the {len(matrices)} matrices of the layers, {numbers:.3g}M of "
            f"{of_all:.3g}M weights, unless a method freezes them or puts adapters beside; AdamW steps the others: "
            "embeddings, norms, biases, pooler and head."
        )
    return notes


def _can_checkpoint(skeleton: torch.nn.Module) -> bool:
    return any(isinstance(module, GradientCheckpointingLayer) for module in skeleton.modules())


def warnings_of(cells: Sequence[Cell]) -> list[str]:
    """Return what methods say of cells that can run, above all that they have no effect there; each sentence once."""
    warnings: dict[str, None] = {}
    for cell in {(cell.method, cell.model, cell.task): cell for cell in cells}.values():
        stack = cell.make_stack()
        label = registry.describe(stack)
        for text in stack.warnings(facts_of(cell, stack)):
            # Of a stack the sentence names the method; where that is all there is, once is enough.
            warnings[f"Warning: '{label}': {text.removeprefix(f'{label}: ')}."] = None
        if dropout_stays_on(cell.model, registry.task(cell.task).outputs, stack.dropout):
            model = pretrained.label(cell.model)
            warnings[f"Warning: '{label}': '{model}' goes on dropping what {stack.dropout} wants kept."] = None
    return list(warnings)


def check_lengths(todo: Sequence[Cell], study: Study) -> list[str]:
    """Return what is cut off from the examples of the cells that have to run; each sentence once.

    Raises:
        DataError: so few tokens leave none for some text.
    """
    root = study.data_root.resolve() if study.data_root else None
    cells = {(cell.model, cell.task, cell.recipe.max_length, cell.limit_train): cell for cell in todo}
    notes = [f"{cell.task}: {note}" for cell in cells.values() for note in cuts(cell, root)]
    return list(dict.fromkeys(notes))
