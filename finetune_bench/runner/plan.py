"""Run a study: check everything, find what is missing, run it, keep the rows.

All that can be wrong is found before any cell runs: names, values, data, checkpoints, devices, and methods that can't
work here. What is impossible for every cell of a method is an error; for some, those cells are rows that say `skipped`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_bench import registry
from finetune_bench.errors import DataError, Unsupported, UsageError
from finetune_bench.model import pretrained, weights
from finetune_bench.recipe import ARRANGEMENTS, AUTO
from finetune_bench.runner.probe import try_out
from finetune_bench.store.store import Store
from finetune_bench.study import grid
from finetune_bench.study.attribution import label_of
from finetune_bench.study.grid import Cell
from finetune_bench.study.options import DEFAULT_EXECUTOR
from finetune_bench.study.study import Study, run_name, with_defaults

if TYPE_CHECKING:
    import torch

    from finetune_bench.task import TaskData


NOISED = "token embeddings"  # where methods say that they put noise; it goes in through `inputs_embeds`


@dataclass
class Plan:
    """A study that was checked, and what is left to do of it.

    Attributes:
        study: with its defaults filled in.
        store: where its rows are.
        cells: all of them.
        todo: those that have to run.
        cached: ids that are done already.
        failed: rows of cells that failed before and would fail again.
        skipped: cells that can't run, with the reason.
        devices: one name per worker.
        notes: sentences for the user.
    """

    study: Study
    store: Store
    cells: list[Cell]
    todo: list[Cell]
    cached: list[str]
    failed: list[dict[str, Any]]
    skipped: list[tuple[Cell, str]]
    devices: list[str]
    notes: list[str]


def make_plan(study: Study) -> Plan:
    """Check a study and compare it with its store; loads data and configurations, no weights.

    Raises:
        UsageError, MachineError: the first thing that is wrong.
    """
    from finetune_bench import device as devices
    from finetune_bench.runner.inputs import forget

    forget()  # in a long-lived process, files may have changed since the last plan
    for plugin in study.plugins:
        registry.load_plugin(plugin)
    study = with_defaults(study, registry.default_options)
    _, added = grid.stacks(study)
    notes = [f"Added for comparison: {', '.join(added)} (--no-baseline leaves them out)."] if added else []
    if study.attribution and (
        several := [text for text in study.methods if len(registry.make_stack(text).methods) > 1]
    ):
        notes.append(f"--attribution splits single methods only; left as they are: {', '.join(several)}.")
    # Elsewhere there may be what this machine lacks.
    places = devices.choose(study.device, elsewhere=study.executor != DEFAULT_EXECUTOR)
    kind = places[0].type
    if study.recipe.precision == "fp16" and kind == "cpu":
        raise UsageError("--precision fp16 needs a CUDA device: a CPU has no loss scaling for it. Use fp32 or bf16.")
    # One spelling of each task: a file's name and options, however they were typed, make one cell.
    study = dataclasses.replace(study, tasks=tuple(_once("--tasks", [registry.task(t).name for t in study.tasks])))
    _once("--model", [pretrained.label(name) for name in study.models])
    identities = {name: _checked_model(name, study.recipe.max_length) for name in study.models}
    data = {text: _checked_data(text, study) for text in study.tasks}
    for text, found in data.items():
        steps = study.recipe.total_steps(len(found.train))
        if study.recipe.warmup_steps(steps) >= steps:
            raise UsageError(
                f"--warmup {study.recipe.warmup:g}: '{text}' trains for {steps} steps, so the learning rate would "
                "never come down; give fewer warm-up steps, or a share below 1."
            )
    arrangement, why = _arrangement(study)
    notes += [why] if why else []
    fingerprints = {text: found.fingerprint() for text, found in data.items()}
    cells = grid.cells(study, fingerprints, identities, kind, arrangement)
    notes += [f"{text}: {note}" for text, found in data.items() for note in found.notes]
    notes += [note for name in study.models for note in _notes_on(name, study.recipe.max_length)]

    skipped = _impossible(cells)
    notes += _warnings(cells, {cell.id for cell, _ in skipped})
    store = Store(study.out or Path("runs") / run_name(study))
    if store.root.exists() and not store.root.is_dir():
        raise UsageError(f"--out: expected a folder, but '{store.root}' is a file.")
    per_gpu = int(1 / study.gpus_per_worker + 1e-9)
    workers = study.workers or (per_gpu * len(places) if kind != "cpu" else max(1, _cores() // study.threads))
    todo, cached, failed = [], [], []
    cannot = {cell.id for cell, _ in skipped}
    for cell in cells:
        if cell.id in cannot:
            continue
        row = store.row(cell.id) or {}
        has_model = not study.save_model or (store.folder(cell.id) / "model").is_dir()
        if row.get("status") == "done" and has_model:
            cached.append(cell.id)
        elif row.get("status") == "failed" and row.get("retry") == "asked" and not study.retry_failed:
            failed.append(row)
        else:
            todo.append(cell)
    blocks = {block: place for place, block in enumerate(dict.fromkeys(map(comparison_of, todo)))}
    todo.sort(
        key=lambda cell: (blocks[comparison_of(cell)], -grid.relative_passes(cell.stack))
    )  # the longest of each first
    names = [str(places[index % len(places)]) for index in range(workers)]
    return Plan(study, store, cells, todo, cached, failed, skipped, names, notes)


def comparison_of(cell: Cell) -> tuple[str, str, int]:
    """Cells that belong together: one comparison of all methods on one seed."""
    return cell.model, cell.task, cell.seed


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _once(option: str, names: list[str]) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"{option}: two of them would be called '{name}' in the report; rename one, or give it once."
            )
    return names


def _checked_data(text: str, study: Study) -> TaskData:
    from finetune_bench.runner.inputs import load_data

    if study.data_root is not None and not study.data_root.is_dir():
        raise DataError(
            f"--data-root: expected a folder laid out like the hub, but there is none at '{study.data_root}'."
        )
    logging.getLogger("datasets").setLevel(logging.ERROR)
    root = study.data_root.resolve() if study.data_root else None
    return load_data(text, study.limit_train, root, grid.held_out(study))[1]


def _checked_model(name: str, max_length: int) -> str:
    """Check a checkpoint, from its folder to a pass on three texts; returns what identifies it.

    Raises:
        ModelError: it can't be used.
    """
    pretrained.fingerprint(name)
    pretrained.check_fit(name, max_length)
    weights.taken(name)
    try_out(name, max_length)
    return weights.identity(name)


def _notes_on(name: str, max_length: int) -> list[str]:
    """What a user should know of a checkpoint, one sentence each."""
    label, tokenizer = pretrained.label(name), pretrained.tokenizer(name)
    notes = []
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        notes.append(
            f"{label}: the tokenizer has no padding token; its end token, {tokenizer.eos_token}, stands for it."
        )
    if not try_out(name, max_length).ignores_padding:
        notes.append(f"Warning: '{label}': what it predicts of a text changes with the padding beside it.")
    return notes


def _arrangement(study: Study) -> tuple[str, str]:
    """How the batches of all cells are arranged, one way for a whole comparison, and a note of what is in the way.

    Raises:
        UsageError: a method, a model or the recipe can't do what is asked for.
    """
    from finetune_bench.model import packing

    limits = {f"'{label_of(text)}'": registry.make_stack(text).arrangement for text in grid.stacks(study)[0]}
    for name in study.models:
        able = packing.furthest(pretrained.config(name, 2))
        if able != ARRANGEMENTS[0] and not try_out(name, study.recipe.max_length).packs:
            limits[f"'{pretrained.label(name)}', which attends otherwise without padding,"] = ARRANGEMENTS[0]
        else:
            limits[f"'{pretrained.label(name)}'"] = able
    if study.recipe.gradient_checkpointing:
        limits["gradient checkpointing"] = "padded"
    if study.recipe.precision == "fp16":
        limits["fp16, which may leave a step out,"] = "packed"
    furthest = min(limits.values(), key=ARRANGEMENTS.index)
    in_the_way = [name for name, limit in limits.items() if limit == furthest]
    if study.arrangement == AUTO:
        last = furthest == ARRANGEMENTS[-1]
        return furthest, "" if last else f"Batches are {furthest}: {', '.join(in_the_way)} can do no more."
    if ARRANGEMENTS.index(study.arrangement) > ARRANGEMENTS.index(furthest):
        raise UsageError(
            f"--arrangement {study.arrangement}: {', '.join(in_the_way)} can be {furthest} at most; give that, or "
            "leave the option out."
        )
    return study.arrangement, ""


def _impossible(cells: Sequence[Cell]) -> list[tuple[Cell, str]]:
    """The cells that can't run, with the reason.

    Raises:
        Unsupported: all cells of a method can't.
    """
    reasons: dict[tuple[str, str, str], str | None] = {}
    for cell in cells:
        key = (cell.method, cell.model, cell.task)
        if key not in reasons:
            reasons[key] = why_impossible(cell)
    found = [(cell, reason) for cell in cells if (reason := reasons[cell.method, cell.model, cell.task])]
    for method in {cell.method for cell, _ in found}:
        of_method = {reasons[key] for key in reasons if key[0] == method}
        if None not in of_method and not any(cell.held_out for cell in cells):  # of a search, other settings may do
            label = registry.describe(registry.make_stack(method))
            raise Unsupported(
                f"'{label}' can't run in any cell of this study: {'; '.join(sorted(map(str, of_method)))}."
            )
    return found


def _warnings(cells: Sequence[Cell], cannot: set[str]) -> list[str]:
    """What methods say of cells that can run, above all that they have no effect there; each sentence once."""
    from finetune_bench.runner.inputs import dropout_stays_on, facts_of

    found: dict[str, None] = {}
    for cell in {(cell.method, cell.model, cell.task): cell for cell in cells if cell.id not in cannot}.values():
        stack = cell.stack
        label = registry.describe(stack)
        for text in stack.warnings(facts_of(cell, stack)):
            found[f"Warning: '{label}': {text}."] = None
        if dropout_stays_on(cell.model, registry.task(cell.task).outputs, stack.dropout):
            model = pretrained.label(cell.model)
            found[f"Warning: '{label}': '{model}' goes on dropping what {stack.dropout} wants kept."] = None
    return list(found)


def why_impossible(cell: Cell) -> str | None:
    """Why a cell can't run: its method says so, its noise is below what the arithmetic resolves, or the model can't."""
    from finetune_bench.runner.inputs import facts_of

    stack = cell.stack
    facts = facts_of(cell, stack)
    if lost := stack.lost_noise(facts):
        return lost
    noised = [method.name for method in stack.methods if method.noises == NOISED]
    if noised and not try_out(cell.model, cell.recipe.max_length).embeds:
        kind = type(facts.skeleton).__name__
        return f"{noised[0]}: {kind} computes something else of its {NOISED} than of the tokens"
    if cell.recipe.gradient_checkpointing and not _can_checkpoint(facts.skeleton):
        return f"{type(facts.skeleton).__name__} has no gradient checkpointing"
    try:
        return stack.unsupported(facts)
    except Exception as error:  # a plugin may raise anything
        label = registry.describe(stack)
        raise UsageError(
            f"'{label}': asking it what it supports failed with {type(error).__name__}: {error}"
        ) from error


def _can_checkpoint(skeleton: torch.nn.Module) -> bool:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return any(isinstance(module, GradientCheckpointingLayer) for module in skeleton.modules())
