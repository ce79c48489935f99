"""Simulates what the statistics of the reports do on data whose truth is known; writes the table of docs/statistics.md.

    python benchmarks/simulations.py

Every line draws scores of methods, tasks and seeds from normal distributions, applies the very functions that the
reports use, and counts how often an interval holds the truth or a test rejects it. Seeded; a few minutes on one core.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import norm

from finetune_bench.stats import bootstrap, estimates, robust
from finetune_bench.stats.estimates import Estimate

TASKS, METHODS = 8, 7
SEEDS = (3, 5, 10)
# Heterogeneous tasks: noise between seeds from 0.3 to 4 points, and effects that differ from task to task.
NOISE = np.geomspace(0.3, 4.0, TASKS)
EFFECTS = np.linspace(-1.5, 1.5, TASKS)
# So much of the noise's variance is the seed's, common to all methods.
SHARED = 0.6
PAGE = Path(__file__).parent.parent / "docs" / "statistics.md"
BEGIN, END = "<!-- simulated -->", "<!-- end -->"


@dataclass(frozen=True)
class Line:
    """A line of the output is one simulated property.

    Attributes:
        name: What is simulated.
        band: Where the share should lie, as text.
        shares: The share of repetitions, by number of seeds.
    """

    name: str
    band: str
    shares: dict[int, float]


def suite(rng: np.random.Generator, seeds: int, effects: np.ndarray, methods: int = METHODS) -> np.ndarray:
    """Draw (tasks, methods, seeds) scores: task noise, shared by seed in part; the last method has the effects."""
    common = rng.normal(0, np.sqrt(SHARED), (TASKS, 1, seeds))
    separate = rng.normal(0, np.sqrt(1 - SHARED), (TASKS, methods, seeds))
    scores = 70 + (common + separate) * NOISE[:, None, None]
    scores[:, -1] += effects[:, None]
    return scores


def contrast(methods: int) -> np.ndarray:
    """Return the (methods,) weights of the last method minus the first."""
    weights = np.zeros(methods)
    weights[[0, -1]] = -1, 1
    return weights


def holds(estimate: Estimate, truth: float) -> bool:
    """Return whether an interval holds the truth."""
    return estimate.low <= truth <= estimate.high


def share(
    trial: Callable[[np.random.Generator, int], float], runs: int, seeds: tuple[int, ...] = SEEDS
) -> dict[int, float]:
    """Return the mean of a trial over seeded repetitions, by number of seeds."""
    shares = {}
    for number in seeds:
        rng = np.random.default_rng([7, number])
        shares[number] = float(np.mean([trial(rng, number) for _ in range(runs)]))
    return shares


# --- coverage ---------------------------------------------------------------------------------------------------------


def mean_covers(rng: np.random.Generator, seeds: int) -> float:
    """Try a t interval of one method's mean."""
    return holds(estimates.t_interval(rng.normal(70, 2, seeds)), 70)


def difference_covers(rng: np.random.Generator, seeds: int) -> float:
    """Try a paired difference on one task."""
    scores = suite(rng, seeds, EFFECTS)[-1]
    return holds(estimates.paired_difference(scores[-1], scores[0]), EFFECTS[-1])


def contrast_covers(rng: np.random.Generator, seeds: int) -> float:
    """Try a difference on one task from the residual variance of all methods."""
    return holds(estimates.two_way_contrast(suite(rng, seeds, EFFECTS)[-1], contrast(METHODS)), EFFECTS[-1])


def synergy_covers(rng: np.random.Generator, seeds: int) -> float:
    """Try a synergy of two methods."""
    scores = suite(rng, seeds, EFFECTS)[-1]
    return holds(estimates.synergy(*scores[[-1, 1, 2, 0]]), EFFECTS[-1])


def suite_of_blocks(scores: np.ndarray) -> Estimate:
    """Return the mean difference over tasks, each task's from the residual variance of all methods."""
    return estimates.suite_mean([estimates.two_way_contrast(task, contrast(scores.shape[1])) for task in scores])


def suite_of_pairs(scores: np.ndarray) -> Estimate:
    """Return the mean difference over tasks, each task's from its own pairs."""
    return estimates.suite_mean([estimates.paired_difference(task[-1], task[0]) for task in scores])


def suite_covers(rng: np.random.Generator, seeds: int) -> float:
    """Try the mean difference over tasks, blocks of seven methods."""
    return holds(suite_of_blocks(suite(rng, seeds, EFFECTS)), float(EFFECTS.mean()))


def pairs_cover(rng: np.random.Generator, seeds: int) -> float:
    """Try the mean difference over tasks, pairs of two methods."""
    return holds(suite_of_pairs(suite(rng, seeds, EFFECTS, methods=2)), float(EFFECTS.mean()))


def bootstrap_covers(rng: np.random.Generator, seeds: int) -> float:
    """Try the mistake that is avoided: a percentile bootstrap of a few seeds."""
    scores = rng.normal(70, 2, seeds)
    means = scores[rng.integers(0, seeds, (1000, seeds))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return bool(low <= 70 <= high)


def clopper_pearson_covers(rng: np.random.Generator, seeds: int) -> float:
    """Try the interval of a collapse rate of 20 %, over eight tasks."""
    low, high = estimates.clopper_pearson(int(rng.binomial(TASKS * seeds, 0.2)), TASKS * seeds)
    return low <= 0.2 <= high


def multi_bootstrap_covers(rng: np.random.Generator, seeds: int) -> float:
    """Try seeds and examples at once: accuracy of two methods, the truth that of endless seeds and examples."""
    examples = 300
    # What makes an example hard is shared by all runs.
    hard = rng.normal(0, 1, examples)
    skill = rng.normal(0, 0.1, (2, seeds, 1)) + np.array([0.8, 0.6])[:, None, None]
    right = hard + rng.normal(0, 0.5, (2, seeds, examples)) < skill
    truth = 100 * float(np.subtract(*_expected_accuracy()))
    labels = np.ones(examples)
    return holds(bootstrap.multi_bootstrap("accuracy", right[0], right[1], labels, resamples=300), truth)


def _expected_accuracy() -> tuple[float, float]:
    spread = np.sqrt(1 + 0.5**2 + 0.1**2)
    return float(norm.cdf(0.8 / spread)), float(norm.cdf(0.6 / spread))


# --- false positives --------------------------------------------------------------------------------------------------


def suite_rejects(rng: np.random.Generator, seeds: int) -> float:
    """Try the suite's test where no method does anything, blocks of seven methods."""
    return suite_of_blocks(suite(rng, seeds, np.zeros(TASKS))).separated


def pairs_reject(rng: np.random.Generator, seeds: int) -> float:
    """Try the suite's test where no method does anything, pairs of two methods."""
    return suite_of_pairs(suite(rng, seeds, np.zeros(TASKS), methods=2)).separated


def pooled_rejects(rng: np.random.Generator, seeds: int) -> float:
    """Try the mistake that is avoided: every (task, seed) cell counted as its own unit.

    The question is whether the method helps on tasks like these, its effect on each drawn around zero.
    """
    effects = rng.normal(0, 1.0, TASKS)
    pairs = effects[:, None] + rng.normal(0, 1.0, (TASKS, seeds))
    return estimates.t_interval(pairs.ravel()).separated


def tasks_reject(rng: np.random.Generator, seeds: int) -> float:
    """Try the same data with the task as the unit: question (b)."""
    effects = rng.normal(0, 1.0, TASKS)
    pairs = effects[:, None] + rng.normal(0, 1.0, (TASKS, seeds))
    return estimates.t_interval(pairs.mean(axis=1)).separated


def holm_errs(rng: np.random.Generator, seeds: int) -> float:
    """Try for any false call among six methods against one baseline on the suite, after Holm."""
    scores = suite(rng, seeds, np.zeros(TASKS))
    p_values = []
    for method in range(1, METHODS):
        weights = np.zeros(METHODS)
        weights[[0, method]] = -1, 1
        p_values.append(estimates.suite_mean([estimates.two_way_contrast(task, weights) for task in scores]).p_value)
    return min(estimates.holm(p_values)) < 0.05


def discoveries_err(rng: np.random.Generator, seeds: int) -> float:
    """Return the share of false calls by Benjamini and Hochberg, half of twenty true differences being zero."""
    effects = np.repeat([0.0, 3.0], 10)
    pairs = rng.normal(0, 2, (20, seeds)) + effects[:, None]
    called = np.array(estimates.benjamini_hochberg([estimates.t_interval(row).p_value for row in pairs])) < 0.05
    return float(called[:10].sum() / max(1, called.sum()))


def sign_flip_rejects(rng: np.random.Generator, seeds: int) -> float:
    """Try the exact sign-flip test of differences with heavy tails."""
    return estimates.sign_flip(rng.standard_t(3, seeds)) < 0.05


def friedman_rejects(rng: np.random.Generator, seeds: int) -> float:
    """Try Friedman's test on task means of seven equal methods."""
    return robust.rank_test(suite(rng, seeds, np.zeros(TASKS)).mean(axis=2).T).p < 0.05


def nemenyi_errs(rng: np.random.Generator, seeds: int) -> float:
    """Try whether any two of seven equal methods are apart by more than the critical difference."""
    ranks = robust.rank_test(suite(rng, seeds, np.zeros(TASKS)).mean(axis=2).T)
    return bool(np.ptp(ranks.mean) > ranks.critical_difference)


def equivalence_errs(rng: np.random.Generator, seeds: int) -> float:
    """Try to call two methods equal within one point although the true difference is one point."""
    return estimates.equivalence(estimates.t_interval(rng.normal(1, 1, seeds)), 1.0) < 0.05


def best_errs(rng: np.random.Generator, seeds: int) -> float:
    """Try for a best method in bold where all are equal."""
    return estimates.best_is_separated(suite(rng, seeds, np.zeros(TASKS))[0])


def simulate(runs: int) -> list[Line]:
    """Return the whole table, each share from `runs` repetitions."""
    few = max(50, runs // 5)
    return [
        Line("coverage: mean of a method", "93–98 %", share(mean_covers, runs)),
        Line("coverage: paired difference, one task", "93–98 %", share(difference_covers, runs)),
        Line("coverage: two-way difference, one task", "93–98 %", share(contrast_covers, runs)),
        Line("coverage: synergy", "93–98 %", share(synergy_covers, runs)),
        Line("coverage: suite mean, blocks of 7 methods", "93–98 %", share(suite_covers, runs)),
        Line("coverage: suite mean, pairs of 2 methods", "93–98 %", share(pairs_cover, runs)),
        Line("coverage: Clopper–Pearson, rate 20 %", "≥ 95 %", share(clopper_pearson_covers, runs)),
        Line("coverage: multi-bootstrap over seeds × examples", "90–98 %", share(multi_bootstrap_covers, few, (5, 10))),
        Line("avoided: coverage of a percentile bootstrap of the seeds", "95 %", share(bootstrap_covers, few)),
        Line("false positives: suite test, blocks of 7 methods", "3–6 %", share(suite_rejects, runs)),
        Line("false positives: suite test, pairs of 2 methods", "3–6 %", share(pairs_reject, runs)),
        Line("false positives: new tasks, the task as unit", "4–6 %", share(tasks_reject, runs)),
        Line("avoided: the same, task × seed cells pooled", "5 %", share(pooled_rejects, runs)),
        Line("false positives: Holm over 6 methods, any", "≤ 6 %", share(holm_errs, runs)),
        Line("false discoveries: Benjamini–Hochberg, 20 tests", "≤ 5 %", share(discoveries_err, runs)),
        Line("false positives: sign-flip, heavy tails", "≤ 5 %", share(sign_flip_rejects, 4 * runs, (6, 10))),
        Line("false positives: Friedman, 7 methods × 8 tasks", "≤ 6 %", share(friedman_rejects, runs)),
        Line("false positives: critical difference, any pair", "≤ 6 %", share(nemenyi_errs, runs)),
        Line("false equivalence at the margin", "≤ 6 %", share(equivalence_errs, runs)),
        Line("false bold: best of 7 equal methods", "≤ 6 %", share(best_errs, runs)),
    ]


def as_table(lines: list[Line], runs: int) -> str:
    """Return the table as the page shows it."""
    numbers = sorted({seeds for line in lines for seeds in line.shares})
    rows = ["| property | should be | " + " | ".join(f"{n} seeds" for n in numbers) + " |"]
    rows.append("| --- | --- |" + " ---: |" * len(numbers))
    for line in lines:
        cells = [f"{100 * line.shares[n]:.1f} %" if n in line.shares else "—" for n in numbers]
        rows.append(f"| {line.name} | {line.band} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"{runs:,} repetitions a line, fewer for the resampling ones; seeded."])


def main() -> None:
    """Write the table into the page."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{as_table(simulate(runs), runs)}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
