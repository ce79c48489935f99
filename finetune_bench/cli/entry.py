"""The entry of the command line: it parses, calls the command, and turns errors into exit codes.

What a command prints on stdout is data, and on stderr talk.

Exit codes: 0 all done · 1 some cells or checks failed · 2 usage · 3 the machine lacks something · 4 a run contradicts a
published claim · 130 interrupted.
Nothing heavy is imported before it is needed: `--help` is instant.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import sys
from collections.abc import Sequence

from finetune_bench.cli import completion
from finetune_bench.cli.arguments import make_parser
from finetune_bench.cli.console import only_shown, open_streams, say
from finetune_bench.cli.train import dose_command
from finetune_bench.errors import FinetuneBenchError, UsageError
from finetune_bench.printable import brief

_NO_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.ELOOP)  # what was typed is wrong, not the machine
_LONGEST_SENTENCE = 1_000  # characters of an error; whatever it tells of a name or a value is shorter


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; without arguments those of the process are taken."""
    open_streams()
    typed = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser()
    if completion.ASKED_BY_A_SHELL in os.environ:
        completion.answer(parser)
    try:
        parsed, rest = parser.parse_known_args(typed)
        if parsed.command is None:  # a script that meant to name a command is not to go on as if it had
            say(parser.format_help().rstrip())
            return 2
        if rest and parsed.command is not dose_command:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        parsed.rest = rest
        with only_shown() if getattr(parsed, "json", False) else contextlib.nullcontext():
            code: int = parsed.command(parsed)
    except UsageError as error:
        say(f"finetune-bench: {brief(error, _LONGEST_SENTENCE)}")
        return 2
    except FinetuneBenchError as error:  # the machine lacks something
        say(f"finetune-bench: {brief(error, _LONGEST_SENTENCE)}")
        return 3
    except KeyboardInterrupt:
        say(f"\nInterrupted; every finished cell is kept. To go on:\n\n    finetune-bench {shlex.join(typed)}\n")
        return 130
    except BrokenPipeError:  # the reader of stdout (head, less) went away
        sys.stderr.close()
        return 0
    except OSError as error:
        path, reason = brief(error.filename or "the run folder"), brief(error.strerror or error)
        if error.errno in _NO_PATH:
            say(f"finetune-bench: '{path}' is no path that can be read or written: {reason}; give another one.")
            return 2
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "make room and give the same command again" if full else "give another place with --out"
        say(f"finetune-bench: {path}: {reason}; {advice}.")
        return 3
    return code


if __name__ == "__main__":
    sys.exit(main())
