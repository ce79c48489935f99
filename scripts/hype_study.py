"""Write the report and the verdicts of the study of HyPe, from its store in the gallery.

    python -m scripts.hype_study    writes docs/hype-study/

A test recomputes both with `report --check` and `verify`, so that whoever changes what they show runs this again.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from finetune_bench import cli
from scripts import gallery
from scripts.import_graph import ROOT

STORE = "hype-study"
FOLDER = ROOT / "docs" / STORE
REPORT, VERDICTS = FOLDER / "report", FOLDER / "verify"


def write_verdicts(run: Path, folder: Path) -> int:
    """Hold a run against the HyPe paper, as Markdown; return the command's exit code."""
    return cli.main(["verify", "hype", str(run), "--format", "markdown", "--out", str(folder)])


def main() -> None:
    """Write both anew."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "store"
        gallery.unpack(STORE, run)
        codes = (
            cli.main(["report", str(run), "--format", "markdown", "--out", str(REPORT)]),
            write_verdicts(run, VERDICTS),
        )
    if codes[0] or codes[1] not in (0, 4):  # 4: a claim is contradicted, which is a result
        sys.exit(f"report and verify ended with {codes}; expected 0 and 0 or 4")


if __name__ == "__main__":
    main()
