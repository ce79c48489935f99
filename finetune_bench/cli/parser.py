"""This parser is argparse's, with the errors, the nearest names and the help pages of this command line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from finetune_bench.cli.console import show
from finetune_bench.errors import FinetuneBenchError, UnknownName, UsageError
from finetune_bench.printable import brief
from finetune_bench.study.options import Option, default_text

_NEAR = 0.85  # how alike a word and an option are that can hardly be anything else
_LONGEST_DEFAULT = 60  # characters of a default on a help page


class Parser(argparse.ArgumentParser):
    """This parser tells what is wrong, and what was probably meant, as everything else of the command line does.

    Attributes:
        takes_parameter: whether one option may be unknown here, since it is a parameter of a method (`dose`).
        options: the options of a study that the command has, whose defaults the help page tells as they are where no
            task is named.
    """

    takes_parameter = False
    options: Sequence[Option] = ()

    def __init__(self, *, epilog: str | None = None, **settings: Any) -> None:
        super().__init__(epilog=epilog, formatter_class=_HelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError with argparse's words, in place of printing the usage and leaving the process."""
        raise UsageError(f"{brief(message, 300)}; '{self.prog} --help' shows what it takes.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, and raise an UnknownName for an option that doesn't exist."""
        parsed, rest = super().parse_known_args(args, namespace)
        known = [text for text in self._option_string_actions if text.startswith("--")]
        unknown = [text.partition("=")[0] for text in rest if text.startswith("--") and text != "--"]
        if self.takes_parameter:  # of several, those that are options misspelt
            several = unknown if len(unknown) > 1 else []
            unknown = [text for text in several if difflib.get_close_matches(text[:99], known, 1, _NEAR)]
        if unknown and getattr(parsed, "command", None) is self.get_default("command"):
            where = f"'{self.prog} --help' shows them."
            raise UnknownName(f"option of '{self.prog}'", unknown[0], known, where)
        return parsed, rest

    def print_help(self, file: Any = None) -> None:
        """Print the help page on stdout, in characters that it has."""
        show(self.format_help().rstrip())

    def format_help(self) -> str:
        """Return the help page, with the defaults of the study that runs where no task is named."""
        defaults = _defaults() if self.options else {}
        told = {option.name: defaults[option.name] for option in self.options if option.name in defaults}
        self.options = ()  # they are told from now on
        for action in self._actions:
            if action.dest in told and action.help is not None and action.help is not argparse.SUPPRESS:
                action.help += told.pop(action.dest)
        return super().format_help()

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is none of an argument's choices, and name the nearest; argparse calls this for every value."""
        if action.choices is not None and value not in action.choices:
            is_command = isinstance(action, argparse._SubParsersAction)
            kind = "command" if is_command else f"{action.metavar or action.dest} for '{self.prog}'"
            raise UnknownName(kind, str(value), list(action.choices), f"'{self.prog} --help' shows them.")


def examples(*typed: str) -> str:
    """Return the end of a help page: commands that can be typed as they stand, but for names in capitals."""
    return "\n".join(["examples:", *(f"  finetune-bench {line}" for line in typed)])


class _HelpFormatter(argparse.HelpFormatter):
    """This formatter wraps paragraphs, and leaves lines that begin with white space as they are: they are examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.splitlines()
        return "\n".join(
            line if line.startswith(" ") else super(_HelpFormatter, self)._fill_text(line, width, indent)
            for line in lines
        )


def _defaults() -> dict[str, str]:
    """Return by option what its help page adds: the value that the study without --tasks has."""
    from finetune_bench import registry

    try:
        values = registry.default_options()
    except FinetuneBenchError:  # a broken installation shows its help too
        return {}
    told = {}
    for name, value in values.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else default_text(value)
        # The model counts wherever none is named; everything else of the embedded study goes with its tasks.
        when = "default" if name in ("tasks", "model") else "without --tasks"
        told[name] = f" [{when}: {brief(text, _LONGEST_DEFAULT)}]".replace("%", "%%")
    return told
