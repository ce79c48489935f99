"""Simulates how often the interval between a published mean and our own holds the truth; writes docs/statistics.md.

    python -m benchmarks.published_coverage

A published mean is of three runs, ours of ten or five; the deviation of one is up to four times the other's. Every line
applies the very function that `verify` judges by. The table goes into the page, the picture beside it. Seeded.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from finetune_bench.stats.estimates import t_interval
from finetune_bench.stats.published import Summary, judge_level, welch

RATIOS = (1 / 4, 1 / 2, 1.0, 2.0, 4.0)  # the published runs' deviation, in deviations of ours
PUBLISHED_RUNS = 3
DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- published -->", "<!-- end of published -->"


def drawn(rng: np.random.Generator, ratio: float, own_runs: int, apart: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw our scores, and the published ones, whose true mean is so far above ours."""
    return rng.normal(70, 1, own_runs), rng.normal(70 + apart, ratio, PUBLISHED_RUNS)


def summary(scores: np.ndarray) -> Summary:
    """Return what would be published of some scores."""
    return Summary(float(scores.mean()), float(scores.std(ddof=1)), len(scores))


def interval_covers(rng: np.random.Generator, ratio: float, own_runs: int) -> bool:
    """Try the 95 % interval of ours − theirs."""
    own, published = drawn(rng, ratio, own_runs)
    difference = welch(summary(own), summary(published))
    return difference.low <= 0 <= difference.high


def exact_covers(rng: np.random.Generator, ratio: float, own_runs: int) -> bool:
    """Try the mistake that is avoided: the published mean taken for exact."""
    own, published = drawn(rng, ratio, own_runs)
    ours = t_interval(own)
    return ours.low <= float(published.mean()) <= ours.high


def falsely_reproduced(rng: np.random.Generator, ratio: float, own_runs: int) -> bool:
    """Try the verdict *reproduced* where the truth lies exactly at the margin."""
    margin = 2.0 * math.hypot(1 / math.sqrt(own_runs), ratio / math.sqrt(PUBLISHED_RUNS))
    own, published = drawn(rng, ratio, own_runs, apart=margin)
    return judge_level(summary(own), summary(published), margin).verdict.startswith(("reproduced", "different, but"))


LINES = {
    "coverage: ours − published, 10 runs against 3": ("93–97 %", interval_covers, 10),
    "coverage: ours − published, 5 runs against 3": ("93–97 %", interval_covers, 5),
    "avoided: coverage where 3 published runs count as exact, 10 of ours": ("95 %", exact_covers, 10),
    "falsely reproduced at the margin, 10 runs against 3": ("≤ 5.5 %", falsely_reproduced, 10),
}


def share(name: str, ratio: float, runs: int) -> float:
    """Return a line's share at a ratio of the deviations, from so many repetitions."""
    _, trial, own_runs = LINES[name]
    rng = np.random.default_rng([11, list(LINES).index(name), RATIOS.index(ratio)])
    return float(np.mean([trial(rng, ratio, own_runs) for _ in range(runs)]))


def as_table(shares: dict[str, list[float]], runs: int) -> str:
    """Return the table as the page shows it."""
    rows = ["| published deviation ÷ ours | should be | " + " | ".join(f"{ratio:g}" for ratio in RATIOS) + " |"]
    rows.append("| --- | --- |" + " ---: |" * len(RATIOS))
    for name, values in shares.items():
        cells = [f"{100 * value:.1f} %" for value in values]
        rows.append(f"| {name} | {LINES[name][0]} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"{runs:,} repetitions a number; seeded."])


def draw(shares: dict[str, list[float]], path: Path) -> None:
    """Draw coverage by the ratio of the deviations."""
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for name, marker in zip(list(shares)[:3], "os^", strict=True):
        axes.plot(RATIOS, [100 * value for value in shares[name]], marker=marker, label=name.partition(": ")[2])
    axes.axhspan(93, 97, color="0.9", zorder=0)
    axes.axhline(95, color="0.5", linewidth=0.8)
    axes.set(xscale="log", xlabel="published deviation ÷ ours", ylabel="coverage (%)", ylim=(0, 100))
    axes.set_xticks(RATIOS, [f"{ratio:g}" for ratio in RATIOS], minor=False)
    axes.minorticks_off()
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Write the table into the page, and the picture beside it."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    shares = {name: [share(name, ratio, runs) for ratio in RATIOS] for name in LINES}
    page = (DOCS / "statistics.md").read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = f"{before}{BEGIN}\n\n{as_table(shares, runs)}\n\n{END}{after}"
    (DOCS / "statistics.md").write_text(table, "utf-8")
    draw(shares, DOCS / "published-coverage.png")


if __name__ == "__main__":
    main()
