"""The metrics against numbers worked out by hand."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from finetune_bench.errors import UnknownName
from finetune_bench.metrics import METRICS, compute
from tests import ROOT

CLASSES = [name for name, described in METRICS.items() if described.kind == "classification"]
CORRELATIONS = [name for name, described in METRICS.items() if described.kind == "regression"]

# 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
PREDICTED = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
TRUE = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])


def test_accuracy_is_the_share_of_hits() -> None:
    assert compute("accuracy", PREDICTED, TRUE) == pytest.approx(0.7)


def test_f1_counts_class_one_as_positive() -> None:
    assert compute("f1", PREDICTED, TRUE) == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert compute("f1", 1 - PREDICTED, 1 - TRUE) == pytest.approx(2 * 4 / (2 * 4 + 2 + 1))


def test_matthews_of_a_two_by_two_table() -> None:
    expected = (3 * 4 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))
    assert compute("matthews", PREDICTED, TRUE) == pytest.approx(expected)


def test_the_correlations() -> None:
    predictions, labels = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0])
    pearson = 1.0 / math.sqrt((16 + 1 + 25) / 9 * 2)  # covariance 1; the squares around the means 7/3 and 2
    spearman = 1 - 6 * (0 + 1 + 1) / (3 * 8)
    assert compute("pearson", predictions, labels) == pytest.approx(pearson)
    assert compute("spearman", predictions, labels) == pytest.approx(spearman)
    assert compute("pearson_spearman", predictions, labels) == pytest.approx((pearson + spearman) / 2)


def test_spearman_gives_ties_their_mean_rank() -> None:
    # The ranks are 1.5, 1.5, 3 and 1, 2, 3.
    expected = 1.5 / math.sqrt(1.5 * 2)
    assert compute("spearman", np.array([5.0, 5.0, 9.0]), np.array([0.0, 1.0, 2.0])) == pytest.approx(expected)


@pytest.mark.parametrize("name", CORRELATIONS)
def test_a_constant_orders_nothing(name: str) -> None:
    rising, constant = np.arange(5.0), np.full(5, 2.6, dtype=np.float32)
    assert compute(name, constant, rising) == 0.0
    assert compute(name, rising, constant) == 0.0
    assert compute(name, np.zeros(5), rising) == 0.0
    assert compute(name, 3.0 + rising * 1e-16, rising) == 0.0
    assert compute(name, 3.0 + rising * 1e-9, rising) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(("name", "expected"), [("accuracy", 0.5), ("f1", 0.0), ("matthews", 0.0)])
def test_a_constant_class_does_not_warn(name: str, expected: float) -> None:
    assert compute(name, np.zeros(10, dtype=int), TRUE) == expected


def test_accuracy_and_matthews_take_more_than_two_classes() -> None:
    predicted, true = np.array([0, 1, 2, 2]), np.array([0, 1, 2, 1])
    assert compute("accuracy", predicted, true) == 0.75
    # R_K: (correct * examples - sum t_k p_k) / sqrt((n² - sum p²)(n² - sum t²))
    assert compute("matthews", predicted, true) == pytest.approx((3 * 4 - 5) / math.sqrt((16 - 6) * (16 - 6)))


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'accuracy'"):
        compute("acuracy", PREDICTED, TRUE)


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="got 10 and 9"):
        compute("accuracy", PREDICTED, TRUE[1:])
    with pytest.raises(ValueError, match="at least one"):
        compute("accuracy", TRUE[:0], TRUE[:0])
    with pytest.raises(ValueError, match="NaN"):
        compute("pearson", np.array([1.0, np.nan]), np.array([0.0, 1.0]))


@pytest.mark.parametrize("name", METRICS)
def test_threads_do_not_mix_their_values(name: str) -> None:
    generator = np.random.default_rng(0)
    pairs = [(generator.integers(0, 2, 50 + i), generator.integers(0, 2, 50 + i)) for i in range(12)]
    expected = [compute(name, *pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: compute(name, *pair), pairs)) == expected


def test_numpys_global_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    compute("accuracy", PREDICTED, TRUE)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]


@pytest.mark.slow
def test_nothing_is_written_and_no_home_is_needed(tmp_path: Path) -> None:
    program = "\n".join(
        [
            "import sys, numpy as np, finetune_bench.metrics as metrics",
            "assert not {'evaluate', 'datasets', 'sklearn', 'scipy', 'torch'} & set(sys.modules)",
            "print(metrics.compute('f1', np.array([1, 0]), np.array([1, 1])))",
        ]
    )
    nowhere = tmp_path / "a file"
    nowhere.write_text("")  # below a file no folder can be made, whoever asks
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "HF_HOME": str(nowhere / "hf"), "TMPDIR": str(tmp_path / "temporary")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(2 / 3)
    assert not list((tmp_path / "temporary").iterdir())
