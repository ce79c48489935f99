"""Take the README's picture: the first screen of the report of the gallery's quick start.

    python -m scripts.picture    takes it anew, with Chromium; writes docs/first-screen.png and .json

Beside the picture lie the hashes of its file and of what it shows: the mark-up of the first screen, with its style and
script. Fonts are the browser's and part of neither, so the test that compares them needs no browser and says the same
on every machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

from finetune_bench.reports.content import document
from finetune_bench.reports.document import Heading
from finetune_bench.reports.html import render
from finetune_bench.reports.rows.load import load
from scripts import gallery
from scripts.import_graph import ROOT

PICTURE = ROOT / "docs" / "first-screen.png"
HASHES = PICTURE.with_suffix(".json")
STORE = "quick-start"
WIDTH, HEIGHT, SCALE = 1160, 800, 2


def first_screen() -> str:
    """Return the report's page down to the end of its answer, as HTML."""
    with tempfile.TemporaryDirectory() as folder:
        data = load(gallery.unpack(STORE, Path(folder) / "store"))
        blocks = document(data)
    end = next(number for number, block in enumerate(blocks) if number and isinstance(block, Heading))
    return render(blocks[:end], data.rows)


def hash_of(page: str) -> str:
    """Return the hash of what a page shows: without its version, and without numbers that are more exact than shown."""
    shown = page[page.index("<style>") :]
    for unseen in (r'<script type="application/octet-stream".*?</script>', r' data-sort="[^"]*"'):
        shown = re.sub(unseen, "", shown)
    return hashlib.sha256(shown.encode()).hexdigest()


def hashes(page: str) -> dict[str, str]:
    """Return what belongs beside the picture that lies there now, if it shows this page."""
    return {"page": hash_of(page), "picture": hashlib.sha256(PICTURE.read_bytes()).hexdigest()}


def take(page: str) -> bytes:
    """Return a picture of a page's first screen, as PNG with few colours.

    Raises:
        SystemExit: Chromium is missing or takes no picture.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Taking the picture needs Chromium; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "page.html", Path(folder) / "page.png"
        source.write_text(page, "utf-8")
        window = ["--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SCALE}"]
        files = [f"--user-data-dir={folder}/profile", f"--screenshot={target}", source.as_uri()]
        command = [chromium, "--headless", "--no-sandbox", *window, *files]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
        if not target.is_file():
            raise SystemExit(f"Chromium took no picture:\n{done.stderr}")
        shot = without_empty_end(Image.open(target).convert("RGB"))
    file = io.BytesIO()
    shot.quantize(128, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def without_empty_end(shot: Image.Image) -> Image.Image:
    """Return a picture without what is empty below its last mark, but for a margin."""
    paper = Image.new("RGB", shot.size, shot.getpixel((0, shot.height - 1)))
    marks = ImageChops.difference(shot, paper).getbbox() or (0, 0, *shot.size)
    return shot.crop((0, 0, shot.width, min(shot.height, marks[3] + 16 * SCALE)))


def main() -> int:
    """Take the picture; return 0."""
    page = first_screen()
    PICTURE.write_bytes(take(page))
    HASHES.write_text(json.dumps(hashes(page), indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
