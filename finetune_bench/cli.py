"""The command line: thin. stdout is data, stderr is talk.

Exit codes: 0 all done · 1 some cells or checks failed · 2 usage · 3 the machine lacks something · 130 interrupted.
Nothing heavy is imported before it is needed: `--help` is instant.
"""

from __future__ import annotations

import argparse
import errno
import gc
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_bench import __version__, executors
from finetune_bench.errors import FinetuneBenchError, UsageError
from finetune_bench.report import DEFAULT, Options
from finetune_bench.study import OPTIONS

if TYPE_CHECKING:
    from finetune_bench.method import Method
    from finetune_bench.progress import Tally
    from finetune_bench.runner import Plan
    from finetune_bench.store import Store
    from finetune_bench.study import Study

FORMATS = "markdown,html,csv"
_GROUPS = {"study": "what to compare", "where": "where and how", "recipe": "the training recipe"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    parsed, rest = parser.parse_known_args(typed)
    if rest and parsed.command is not _dose:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    parsed.rest = rest
    try:
        code: int = parsed.command(parsed)
    except UsageError as error:
        _say(f"finetune-bench: {error}")
        return 2
    except FinetuneBenchError as error:  # the machine lacks something
        _say(f"finetune-bench: {error}")
        return 3
    except KeyboardInterrupt:
        _say(f"\nInterrupted; every finished cell is kept. To go on:\n\n    finetune-bench {shlex.join(typed)}\n")
        return 130
    except BrokenPipeError:  # the reader of stdout (head, less) went away
        sys.stderr.close()
        return 0
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "make room and give the same command again" if full else "give another place with --out"
        _say(f"finetune-bench: {error.filename or 'the run folder'}: {error.strerror or error}; {advice}.")
        return 3
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finetune-bench",
        description="Find out which regulariser helps when fine-tuning a pre-trained transformer, on which task, and "
        "at what price in memory and time.",
    )
    parser.add_argument("--version", action="version", version=f"finetune-bench {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="train a grid of methods, tasks and seeds, and report",
        description="Train a grid of methods × tasks × models × learning rates × seeds and report. What is done "
        "already is not run again. Without --tasks the embedded study runs, without any hub.",
        epilog="Stacks are written with '+', hyper-parameters in brackets: "
        "--methods 'hype(eps=1e-4,noise=uniform_symmetric)+rdrop(alpha=0.5)'.",
    )
    _add_options(run)
    run.set_defaults(command=_run)

    plan = commands.add_parser(
        "plan",
        help="what a run will take: time, memory, disk",
        description="Check a study as `run` does, calibrate on this machine with a few steps of every method, and say "
        "what the run will take. Runs no cell.",
    )
    _add_options(plan, without=("budget",))
    plan.set_defaults(command=_plan)

    dose = commands.add_parser(
        "dose",
        allow_abbrev=False,  # --eps is a parameter, whatever options begin alike
        help="score and disturbance against a method's strength",
        description="Train a method at several strengths, and measure what each does to logits and gradients of a real "
        "batch: dose hype --eps 1e-5,1e-3,1e-1. Of a stack, the parameter is written --hype.eps; so is one with "
        "the name of an option below.",
    )
    dose.add_argument("method", metavar="METHOD", help="a method or stack, as 'hype(noise=uniform_onesided)'")
    _add_options(dose, without=("methods", "attribution", "search", "fair_cost", "budget"))
    dose.set_defaults(command=_dose)

    report = commands.add_parser(
        "report", help="write a run's report", description="Write a run's report; trains nothing."
    )
    report.add_argument("run", metavar="RUN", help="the run's folder")
    report.add_argument("--format", default=FORMATS, metavar="LIST", help=f"formats (default: {FORMATS})")
    report.add_argument("--out", metavar="FOLDER", help="where to (default: RUN/report)")
    report.add_argument("--baseline", metavar="METHOD", help="what differences are to (default: vanilla)")
    report.add_argument("--margin", metavar="POINTS", type=float, help="test also for equality within this margin")
    report.add_argument(
        "--bootstrap", action="store_true", help="also resample seeds and examples together; reads every prediction"
    )
    report.add_argument(
        "--check", action="store_true", help="write nothing; recompute the written report and fail on any difference"
    )
    report.add_argument("--plugin", metavar="LIST", help="Python files with more report formats")
    report.set_defaults(command=_report)

    compare = commands.add_parser(
        "compare",
        help="hold two runs against each other, cell by cell",
        description="Hold two runs against each other: the same method, task, seed and setting in both.",
    )
    compare.add_argument("runs", metavar="RUN", nargs=2, help="the runs' folders")
    compare.set_defaults(command=_compare)

    merge = commands.add_parser(
        "merge",
        help="one run from several, as from several machines",
        description="Copy the cells of several runs into one; equal cells are kept once.",
    )
    merge.add_argument("out", metavar="OUT", help="the folder to merge into; made where it isn't there")
    merge.add_argument("runs", metavar="RUN", nargs="+", help="the runs' folders, left as they are")
    merge.set_defaults(command=_merge)

    power = commands.add_parser(
        "power",
        help="how many seeds for a difference",
        description="From a pilot run: what each number of seeds would find, and how many a difference takes.",
    )
    power.add_argument("run", metavar="RUN", help="the folder of a run with two seeds or more")
    power.add_argument("--difference", metavar="POINTS", type=float, default=1.0, help="to be found (default 1)")
    power.add_argument("--power", metavar="SHARE", type=float, default=0.8, help="how surely (default 0.8)")
    power.set_defaults(command=_power)

    listing = commands.add_parser("list", help="list methods, tasks or reports")
    listing.add_argument("group", choices=("methods", "tasks", "reports"))
    listing.add_argument("--plugin", metavar="LIST", help="Python files with more of them")
    listing.set_defaults(command=_list)

    show = commands.add_parser("show", help="show a method's card, a task, or a cell of a run")
    show.add_argument("name", metavar="NAME|CELL", help="a method, a task, a cell's id (or its first digits) or folder")
    show.add_argument("--run", metavar="RUN", help="where the cell is looked for (default: every folder in runs/)")
    show.add_argument("--plugin", metavar="LIST", help="Python files with more of them")
    show.set_defaults(command=_show)

    check = commands.add_parser("check", help="run the contract's tests on a method: a name, or a plugin's file")
    check.add_argument("target", metavar="METHOD|FILE")
    check.set_defaults(command=_check)
    return parser


def _add_options(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    groups = {name: parser.add_argument_group(title) for name, title in _GROUPS.items()}
    for option in OPTIONS:
        if option.name in without:
            continue
        if option.is_switch:
            groups[option.group].add_argument(option.flag, action="store_true", default=None, help=option.help)
        else:
            groups[option.group].add_argument(option.flag, metavar=option.metavar, help=option.help.replace("%", "%%"))


def _run(parsed: argparse.Namespace) -> int:
    from finetune_bench import receipt, registry
    from finetune_bench.study import make_study

    study = make_study({option.name: getattr(parsed, option.name) for option in OPTIONS}, registry.default_options)
    if (said := receipt.give(study)) is not None:
        _say(said[0])
        print(said[1])
        return 0
    plan, tally = _train(study)
    answer, paths = _summarise(plan.store, plan.store.root / "report", FORMATS.split(","), DEFAULT)
    count = len(plan.cells)
    if tally.done + tally.cached == count and not plan.study.save_model:
        talk = f"{count} cells in '{plan.store.root}', {count} cached: nothing to do."
        receipt.keep(study, "\n".join([*plan.notes, talk]), answer, paths)
    return 1 if tally.failed or tally.failed_before else 0


def _plan(parsed: argparse.Namespace) -> int:
    from tabulate import tabulate

    from finetune_bench import registry
    from finetune_bench.forecast import forecast
    from finetune_bench.runner import make_plan
    from finetune_bench.study import make_study

    flags: dict[str, Any] = {option.name: getattr(parsed, option.name, None) for option in OPTIONS}
    study = make_study(flags, registry.default_options)
    if study.executor != executors.DEFAULT:
        raise UsageError("plan: it calibrates on this machine; leave --executor out, and run it on a node.")
    plan = make_plan(study)
    for note in plan.notes:
        _say(note)
    _say(_intention(plan))
    if not plan.todo:
        return 0
    _say("Calibrating: a few steps of every method ...")
    found = forecast(plan)
    rows: dict[str, list[float]] = {}
    for cell in plan.todo:
        rows.setdefault(cell.label, []).append(found.seconds[cell.id])
    table = [[label, len(s), f"{sum(s) / len(s):.1f}", f"{sum(s):.0f}"] for label, s in rows.items()]
    print(tabulate(table, ["method", "cells", "CPU seconds a cell", "in all"], colalign=("left", *["right"] * 3)))
    memory = "not measured here" if found.memory_bytes is None else f"{found.memory_bytes / 2**20:.0f} MiB a worker"
    print(f"\ncells      {len(plan.todo)}, with {found.workers} workers on {plan.devices[0]}")
    print(f"CPU time   {found.cpu_seconds:.0f} s in all, {found.start_seconds:.0f} s of it to start each worker")
    print(f"wall time  {found.wall_seconds:.0f} s, if nothing else runs")
    print(f"memory     {memory}")
    print(f"disk       {found.disk_bytes / 2**20:.1f} MiB")
    return 0


def _dose(parsed: argparse.Namespace) -> int:
    import re

    words = [part for word in parsed.rest for part in word.split("=", 1)]
    if len(words) != 2 or not re.fullmatch(r"--[a-z0-9_.-]+", words[0]):
        got = " ".join(parsed.rest) or "nothing"
        raise UsageError(
            f"dose: expected one parameter of '{parsed.method}' and its values, as --eps 1e-5,1e-3; got {got}."
        )
    _load_plugins(parsed.plugin)

    import torch

    from finetune_bench import registry
    from finetune_bench.attribution import label_of
    from finetune_bench.dose import default_dose, measure_doses, read_doses
    from finetune_bench.reports.dose import DoseStudy, write_dose
    from finetune_bench.study import make_study

    option = words[0][2:].replace("-", "_")
    doses = read_doses(parsed.method, option, words[1])
    flags = {one.name: getattr(parsed, one.name, None) for one in OPTIONS} | {"methods": list(doses.values())}
    plan, tally = _train(make_study(flags, registry.default_options))
    _say("Measuring what each dose does to a batch ...")
    cell = plan.cells[0]
    root = plan.study.data_root
    torch.set_num_threads(max(1, cell.threads))
    measured, dropout = measure_doses(cell, doses, root.resolve() if root else None, torch.device(plan.devices[0]))
    study = DoseStudy(
        method=parsed.method,
        parameter=option,
        labels={dose: label_of(full) for dose, full in doses.items()},
        default=default_dose(parsed.method, option),
        task=cell.task,
        logits={dose: one.logits for dose, one in measured.items()},
        gradients={dose: one.gradients for dose, one in measured.items()},
        dropout=(dropout.logits, dropout.gradients),
    )
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{parsed.method}-{option}").strip("-")
    text, paths = write_dose(plan.store, study, plan.store.root / "dose" / name)
    print(f"{text}\n")
    for path in paths:
        print(path)
    return 1 if tally.failed or tally.failed_before else 0


def _train(study: Study) -> tuple[Plan, Tally]:
    """Check a study and run what is missing of it."""
    from rich.console import Console

    from finetune_bench.progress import Reporter, Tally
    from finetune_bench.runner import execute, make_plan

    _say("Checking the study: methods, data, checkpoints ...")
    plan = make_plan(study)
    for note in plan.notes:
        _say(note)
    tally = Tally(len(plan.cells))
    reporter = Reporter(tally, Console(stderr=True))
    _say(_intention(plan))
    if plan.todo and plan.study.budget is not None:
        from finetune_bench.forecast import forecast
        from finetune_bench.runner import within_budget

        _say("Calibrating: a few steps of every method ...")
        found = forecast(plan)
        _say(within_budget(plan, found.workers * (plan.study.budget - found.start_seconds), found.seconds))
    if plan.todo:
        with reporter.live():
            execute(plan, reporter)
        _say(f"Finished: {tally}.")
    else:
        execute(plan, reporter)
    return plan, tally


def _intention(plan: Plan) -> str:
    parts = [f"{len(plan.cells)} cells in '{plan.store.root}'"]
    counts = {"cached": len(plan.cached), "skipped": len(plan.skipped), "failed before": len(plan.failed)}
    parts += [f"{count} {name}" for name, count in counts.items() if count]
    if plan.failed:
        parts.append("--retry-failed runs those that failed again")
    if not plan.todo:
        return ", ".join(parts) + ": nothing to do."
    workers = min(len(plan.devices), len(plan.todo))
    return (
        ", ".join(parts) + f": {len(plan.todo)} to run with {workers} worker{'s' * (workers > 1)} on {plan.devices[0]}."
    )


def _summarise(store: Store, folder: Path, formats: list[str], options: Options) -> tuple[str, list[Path]]:
    """Write and print a report; returns what was printed, and the files."""
    from finetune_bench import registry
    from finetune_bench.reports.markdown import summary_table

    folder.mkdir(parents=True, exist_ok=True)
    gc.disable()  # every collection would walk all rows, and a report of ten thousand needs no memory back
    written = {name: registry.report_class(name)().write(store, folder, options) for name in formats}
    places = "\n".join(f"{name}: {paths[0]}" for name, paths in written.items())
    answer = f"{summary_table(store, options)}\n\n{places}"
    print(answer)
    return answer, [path for paths in written.values() for path in paths]


def _report(parsed: argparse.Namespace) -> int:
    from finetune_bench import registry
    from finetune_bench.spec import split
    from finetune_bench.store import Store

    _load_plugins(parsed.plugin)
    formats = split(parsed.format, ",")
    if not formats:
        raise UsageError("--format: expected one format or more, separated by commas; got none.")
    for name in formats:
        registry.report_class(name)  # an unknown format is told before any is written
    if parsed.margin is not None and not parsed.margin > 0:
        raise UsageError(f"--margin: expected a number of points above 0; got {parsed.margin:g}.")
    options = Options(baseline=parsed.baseline, margin=parsed.margin, bootstrap=parsed.bootstrap)
    store = Store.open(parsed.run)
    folder = Path(parsed.out) if parsed.out else store.root / "report"
    if parsed.check:
        return _check_report(store, folder, formats, options)
    _summarise(store, folder, formats, options)
    return 0


def _check_report(store: Store, folder: Path, formats: list[str], options: Options) -> int:
    """Whether a written report is what its store gives now; says which files aren't, and where they first differ."""
    from tempfile import TemporaryDirectory

    from finetune_bench import registry

    if not folder.is_dir():
        raise UsageError(f"--check: expected a written report in '{folder}', but there is no such folder.")
    differing = checked = 0
    with TemporaryDirectory(prefix="finetune-bench-") as name:
        for path in [
            path for one in formats for path in registry.report_class(one)().write(store, Path(name), options)
        ]:
            checked += 1
            inside = path.relative_to(name)
            reason = _difference(path, folder / inside)
            if reason:
                differing += 1
                print(f"{folder / inside}: {reason}")
    print(f"{checked} files recomputed, {differing} differ.")
    return 1 if differing else 0


def _difference(fresh: Path, written: Path) -> str:
    """Where a written file first differs from a fresh one; "" where it doesn't."""
    if not written.is_file():
        return "missing"
    new, old = fresh.read_bytes(), written.read_bytes()
    if new == old:
        return ""
    if fresh.suffix in (".pdf", ".parquet"):
        return "differs"
    pairs = enumerate(zip(new.decode().splitlines(), old.decode("utf-8", "replace").splitlines(), strict=False), 1)
    for number, (own, other) in pairs:
        if own != other:
            at = next(
                (i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other))
            )
            around = slice(max(0, at - 40), at + 40)
            return f"line {number}: '{other[around]}' is written, '{own[around]}' is computed"
    return "differs in length"


def _compare(parsed: argparse.Namespace) -> int:
    from finetune_bench.reports.runs import as_text, compare
    from finetune_bench.store import Store

    first, second = map(Store.open, parsed.runs)
    print(as_text(*compare(first, second)))
    return 0


def _merge(parsed: argparse.Namespace) -> int:
    from finetune_bench.merge import merge

    merged = merge(Path(parsed.out), [Path(run) for run in parsed.runs])
    for conflict in merged.conflicts:
        _say(conflict)
    print(f"{merged.copied} cells copied to '{parsed.out}', {merged.present} were there already.")
    return 1 if merged.conflicts else 0


def _power(parsed: argparse.Namespace) -> int:
    from finetune_bench.reports.power import as_text, power_lines
    from finetune_bench.store import Store

    if not parsed.difference > 0:
        raise UsageError(f"--difference: expected a number of points above 0; got {parsed.difference:g}.")
    if not 0.05 < parsed.power < 1:
        raise UsageError(f"--power: expected a share between 0.05 and 1; got {parsed.power:g}.")
    lines = power_lines(Store.open(parsed.run), parsed.difference, parsed.power)
    print(as_text(lines, parsed.difference, parsed.power))
    return 0


def _list(parsed: argparse.Namespace) -> int:
    from tabulate import tabulate

    from finetune_bench import registry

    _load_plugins(parsed.plugin)
    lines: list[list[str | int]] = []
    for name in registry.names(parsed.group):
        if parsed.group == "methods":
            from finetune_bench.method import Passes

            method = registry.method_class(name)()
            passes = method.passes(Passes())
            said = (type(method).__doc__ or "").strip().partition("\n")[0]
            lines.append([name, said, f"{passes.forwards} + {passes.backwards}"])
        elif parsed.group == "tasks":
            task = registry.task(name)
            lines.append([name, task.kind, ", ".join(task.metrics), len(task.labels) or ""])
        else:
            lines.append([name, (registry.report_class(name).__doc__ or "").strip().splitlines()[0]])
    heads = {
        "methods": ["method", "what it is", "passes per step (forward + backward)"],
        "tasks": ["task", "kind", "metrics (the first is compared)", "classes"],
        "reports": ["format", "what it is"],
    }
    print(tabulate(lines, headers=heads[parsed.group], tablefmt="simple"))
    return 0


def _show(parsed: argparse.Namespace) -> int:
    import dataclasses

    from tabulate import tabulate

    from finetune_bench import registry
    from finetune_bench.errors import UnknownName
    from finetune_bench.parameters import as_text, expectation

    _load_plugins(parsed.plugin)
    if parsed.name in registry.names("methods"):
        owner = registry.method_class(parsed.name)
        print((sys.modules[owner.__module__].__doc__ or owner.__doc__ or "").strip())
        print(f"\n{_costs(owner())}\n\nParameters:\n")
        lines = [
            [field.name, as_text(field.default), expectation(owner, field), field.metadata.get("help", "")]
            for field in dataclasses.fields(owner)
        ]
        print(tabulate(lines, headers=["parameter", "default", "must be", "what it is"], tablefmt="simple"))
        return 0
    if parsed.name in registry.names("tasks"):
        task = registry.task(parsed.name)
        print(f"{task.name}: {task.kind}; metrics: {', '.join(task.metrics)}")
        if task.labels:
            print(f"classes, from id 0: {', '.join(task.labels)}")
        return 0
    from finetune_bench.reports.card import card, find_cell

    found = find_cell(parsed.name, [Path(parsed.run)] if parsed.run else sorted(Path("runs").glob("*")))
    if found is not None:
        print(card(*found))
        return 0
    known = [*registry.names("methods"), *registry.names("tasks")]
    hint = "'finetune-bench list methods' shows the methods; a cell's run is given by --run."
    raise UnknownName("method, task or cell", parsed.name, known, hint)


def _costs(method: Method) -> str:
    """The cost model of a method at its defaults."""
    from finetune_bench.method import SIZES, Memory, Passes

    passes, memory = method.passes(Passes()), method.memory(Memory())
    used = [name for name in SIZES if memory.saved.get(name) or memory.kept.get(name)]
    return "\n".join(
        [
            "Cost model, at the defaults:\n",
            f"  passes per step             {passes.forwards} forward + {passes.backwards} backward",
            f"  saved for the backward pass {memory.saved_formula}",
            f"  kept beside weights, gradients and two moments: {memory.kept_formula}\n",
            *(f"  {name:8} {SIZES[name]}" for name in used),
        ]
    )


def _check(parsed: argparse.Namespace) -> int:
    from finetune_bench import registry
    from finetune_bench.testing import check_method

    names = [parsed.target]
    if Path(parsed.target).suffix == ".py":
        names = [name for name in registry.load_plugin(parsed.target) if name in registry.names("methods")]
        if not names:
            raise UsageError(f"'{parsed.target}' defines no method to check.")
    failed = 0
    for name in names:
        print(f"{name}:")
        for check in check_method(registry.method_class(name)):
            print(f"  {check.outcome:4}  {check.name}" + (f": {check.detail}" if check.detail else ""), flush=True)
            failed += check.outcome == "FAIL"
    return 1 if failed else 0


def _load_plugins(text: str | None) -> None:
    from finetune_bench import registry
    from finetune_bench.study import read_options

    for plugin in read_options({"plugin": text}).get("plugin", ()):
        registry.load_plugin(plugin)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
