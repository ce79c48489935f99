"""`run`, `plan` and `dose` are the commands to train, or to prepare for it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_bench import launch
from finetune_bench.cli.console import say, show
from finetune_bench.cli.documents import show_document
from finetune_bench.cli.plan_document import plan_values
from finetune_bench.cli.report import FORMATS, summarise, tell_damaged
from finetune_bench.cli.show import load_plugins
from finetune_bench.errors import UsageError
from finetune_bench.report import Options
from finetune_bench.study.sources import OPTIONS
from finetune_bench.study.study import DEFAULT_EXECUTOR

# Said before anything that takes time is imported.
CHECKING = "Checking the study: methods, data, checkpoints ..."

if TYPE_CHECKING:
    from finetune_bench.runner.forecast import Forecast
    from finetune_bench.runner.plan import Plan
    from finetune_bench.runner.progress import Counts
    from finetune_bench.study.study import Study


def run_command(parsed: argparse.Namespace) -> int:
    """Train what is missing of a study, and report; return 1 where cells failed or rows are damaged."""
    from finetune_bench import registry
    from finetune_bench.study.sources import make_study

    return run_study(make_study(flags_of(parsed), registry.default_options))


def run_study(study: Study) -> int:
    """Train what is missing of a study, and report; return 1 where cells failed or rows are damaged."""
    from finetune_bench.cli import result_cache

    if (cached := result_cache.look_up(study)) is not None:
        talk, answer = cached
        say(talk)
        show(answer)
        return 0
    plan, tally = _train(study)
    from finetune_bench.reports.rows.load import load
    from finetune_bench.runner.plan import untold

    answer, paths = summarise(plan.store, plan.store.root / "report", FORMATS.split(","), _covering(plan))
    count = len(plan.cells)
    damaged = tell_damaged(plan.store, load(plan.store, _covering(plan)).damaged)
    if tally.done + tally.cached == count and not plan.study.save_model and not damaged:
        talk = f"{count} cells in '{plan.store.root}', {count} cached: nothing to do."
        warnings = [note for note in untold(plan) if note.startswith("Warning")]
        result_cache.keep(study, "\n".join([*warnings, talk]), answer, paths)
    return 1 if tally.failed or tally.failed_before or damaged else 0


def plan_command(parsed: argparse.Namespace) -> int:
    """Check a study, calibrate, and print what a run of it will take; return 0."""
    from finetune_bench import registry
    from finetune_bench.study.sources import make_study

    return plan_study(make_study(flags_of(parsed), registry.default_options), as_json=parsed.json)


def plan_study(study: Study, *, as_json: bool = False) -> int:
    """Check a study, calibrate, and print what a run of it will take; return 0."""
    if study.executor != DEFAULT_EXECUTOR:
        raise UsageError("plan: it calibrates on this machine; leave --executor out, and run it on a node.")
    say(CHECKING)
    from finetune_bench.runner.forecast import forecast
    from finetune_bench.runner.plan import make_plan

    plan = make_plan(study, say)
    for note in plan.notes:
        say(note)
    say(_intention(plan))
    if not plan.todo:
        if as_json:
            show_document("plan", plan_values(plan, None))
        return 0
    expected = forecast(plan, say)
    if as_json:
        show_document("plan", plan_values(plan, expected))
    else:
        _show_forecast(plan, expected)
    return 0


def _show_forecast(plan: Plan, expected: Forecast) -> None:
    """Print what the runs of a plan take: a table of methods, and the sums."""
    from tabulate import tabulate

    seconds: dict[str, list[float]] = {}
    for cell in plan.todo:
        seconds.setdefault(cell.label, []).append(expected.seconds[cell.id])
    sources = {cell.label: expected.timed_with.get(cell.method, "its passes") for cell in plan.todo}
    table = [[label, len(s), f"{sum(s) / len(s):.1f}", f"{sum(s):.0f}", sources[label]] for label, s in seconds.items()]
    clock = "CPU" if plan.devices[0] == "cpu" else "GPU"
    header = ["method", "cells", f"{clock} seconds a cell", "in all", "foretold from"]
    show(tabulate(table, header, colalign=("left", *["right"] * 3, "left")))
    bytes_each = expected.memory_bytes
    memory = "not measured here" if bytes_each is None else f"{bytes_each / 2**20:.0f} MiB a worker"
    workers = f"{expected.workers} worker{'s' * (expected.workers > 1)} on {plan.devices[0]}"
    show(f"\ncells      {len(plan.todo)}, with {workers}")
    if len(plan.trainings) < len(plan.todo):
        show(f"trainings  {len(plan.trainings)}: cells that are trained alike to the last bit are scored from one")
    start = f"{expected.start_seconds:.0f} s of it to start each worker"
    show(f"{clock} time   {expected.cpu_seconds:.0f} s in all, {start}")
    show(f"wall time  {expected.wall_seconds:.0f} s, if nothing else runs")
    show(f"memory     {memory}")
    show(f"disk       {expected.disk_bytes / 2**20:.1f} MiB")


def dose_command(parsed: argparse.Namespace) -> int:
    """Train a method at several strengths and measure what each does to a batch; return 1 where cells failed."""
    import re

    rest = [part for argument in parsed.rest for part in argument.split("=", 1)]
    if len(rest) != 2 or not re.fullmatch(r"--[a-z0-9_.-]+", rest[0]):
        got = " ".join(parsed.rest) or "nothing"
        raise UsageError(
            f"dose: expected one parameter of '{parsed.method}' and its values, as --eps 1e-5,1e-3; got {got}."
        )
    load_plugins(parsed.plugin)

    import torch

    from finetune_bench import registry
    from finetune_bench.reports.dose_files import write_dose
    from finetune_bench.reports.topics.dose import DoseStudy
    from finetune_bench.runner.dose import default_dose, measure_doses, read_doses
    from finetune_bench.study.attribution import label_of
    from finetune_bench.study.sources import make_study

    flag, values = rest
    parameter = flag.removeprefix("--").replace("-", "_")
    doses = read_doses(parsed.method, parameter, values)
    flags = flags_of(parsed) | {"methods": list(doses.values())}
    study_of_doses = make_study(flags, registry.default_options)
    if study_of_doses.blocks:
        raise UsageError("dose: expected a file with one grid; got one with [[grid]] blocks or [recipe.TASK].")
    plan, tally = _train(study_of_doses)
    say("Measuring what each dose does to a batch ...")
    cell = plan.cells[0]
    root = plan.study.data_root
    torch.set_num_threads(max(1, cell.threads))
    measured, dropout = measure_doses(cell, doses, root.resolve() if root else None, torch.device(plan.devices[0]))
    study = DoseStudy(
        method=parsed.method,
        parameter=parameter,
        labels={dose: label_of(full) for dose, full in doses.items()},
        default=default_dose(parsed.method, parameter),
        task=cell.task,
        logits={dose: disturbance.logits for dose, disturbance in measured.items()},
        gradients={dose: disturbance.gradients for dose, disturbance in measured.items()},
        dropout=(dropout.logits, dropout.gradients),
    )
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{parsed.method}-{parameter}").strip("-")
    text, paths = write_dose(plan.store, study, plan.store.root / "dose" / name, _covering(plan))
    show(f"{text}\n")
    for path in paths:
        show(str(path))
    return 1 if tally.failed or tally.failed_before else 0


def flags_of(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a study by name; None for those that were not typed, or that the command doesn't have."""
    return {option.name: getattr(parsed, option.name, None) for option in OPTIONS}


def _covering(plan: Plan) -> Options:
    """Return what a command asks of its report: its own cells, whatever another one wrote to the folder meanwhile."""
    return Options(cells=tuple(cell.id for cell in plan.cells))


def _train(study: Study) -> tuple[Plan, Counts]:
    """Check a study and run what is missing of it; return the plan, and what became of its cells."""
    say(CHECKING)
    with launch.early_ended():
        return _train_with_early_workers(study)


def _train_with_early_workers(study: Study) -> tuple[Plan, Counts]:
    """Check a study and run what is missing of it, with workers that import their libraries at the same time."""
    early, environment = _early_workers(study), launch.environment_of("cpu", study.threads)
    launch.launch_early(environment, min(1, early))
    from rich.console import Console

    from finetune_bench.runner.execution import execute
    from finetune_bench.runner.plan import make_plan, untold
    from finetune_bench.runner.progress import Counts, Reporter

    # The others come now: two processes that import the same for the first time would both compile it.
    launch.launch_early(environment, max(0, early - 1))
    plan = make_plan(study, say)
    for note in untold(plan):
        say(note)
    tally = Counts(len(plan.cells))
    tally.begin(plan)
    reporter = Reporter(tally, Console(stderr=True), min(len(plan.devices), len(plan.todo)), _import_reports)
    say(_intention(plan))
    if plan.todo and plan.study.budget is not None:
        from finetune_bench.runner.forecast import forecast, within_budget

        expected = forecast(plan, say)
        say(within_budget(plan, expected.workers * (plan.study.budget - expected.start_seconds), expected.seconds))
    if plan.todo:
        with reporter.live():
            execute(plan, reporter)
        say(f"Finished: {tally}.")
    else:
        execute(plan, reporter)
    return plan, tally


def _import_reports() -> None:
    """Import what the report needs, which takes a second or more, while the last run trains and a core is free."""
    from finetune_bench import registry

    with contextlib.suppress(Exception):  # it will be told by the report
        for name in FORMATS.split(","):
            registry.report_class(name)
        importlib.import_module("finetune_bench.reports.terminal")


def _early_workers(study: Study) -> int:
    """Return how many workers a new study needs at least on a CPU of this machine; 0 where that isn't known yet."""
    from finetune_bench.study.study import run_name

    store = study.out or Path("runs") / run_name(study)
    if study.executor != DEFAULT_EXECUTOR or study.device not in (None, "cpu") or store.exists():
        return 0
    if study.blocks or study.plugins:  # a plugin's code may change what a worker is started with
        return 0
    cells = len(study.methods) * len(study.tasks) * len(study.models) * len(study.seeds)
    return min(study.workers or launch.cores() // study.threads, cells)


def _intention(plan: Plan) -> str:
    """Say how many cells there are, how many of them are left, and where they will run."""
    parts = [f"{len(plan.cells)} cells in '{plan.store.root}'"]
    counts = {"cached": len(plan.cached), "skipped": len(plan.skipped), "failed before": len(plan.failed)}
    parts += [f"{count} {name}" for name, count in counts.items() if count]
    if plan.failed:
        parts.append("--retry-failed runs those that failed again")
    if not plan.todo:
        return ", ".join(parts) + ": nothing to do."
    trainings = len(plan.trainings)
    workers = min(len(plan.devices), trainings)
    shared = f" in {trainings} training{'s' * (trainings > 1)}" if trainings < len(plan.todo) else ""
    where = f"with {workers} worker{'s' * (workers > 1)} on {plan.devices[0]}"
    return ", ".join(parts) + f": {len(plan.todo)} to run{shared} {where}."
