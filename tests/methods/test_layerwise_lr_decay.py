from __future__ import annotations

import pytest
from torch.optim import Optimizer

from finetune_bench.method.base import Method
from finetune_bench.method.step import Run
from finetune_bench.methods.layerwise_lr_decay import LayerwiseLRDecay
from finetune_bench.methods.top_k import TopKTuning
from finetune_bench.methods.vanilla import Vanilla
from finetune_bench.optimizers import regroup
from finetune_bench.testing import toys
from finetune_bench.training.loop import make_optimizer, make_scheduler
from finetune_bench.training.run import TrainingRun
from tests.tiny_run import CONFIGS, tiny_run


class Apart(Method):
    """Vanilla with one group for each parameter."""

    name = "apart"

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        regroup(optimizer, lambda weight, group: {"own": id(weight)})
        assert len(optimizer.param_groups) == len(run.params)
        return optimizer


def rates(run: TrainingRun, decay: float) -> dict[str, float]:
    optimizer = LayerwiseLRDecay(decay=decay).optimizer(make_optimizer(run), run)
    of = {weight: group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    return {name: of[weight] for name, weight in run.params.items() if weight in of}


def test_hand_computed_rates() -> None:
    found = rates(tiny_run(lr=0.8), 0.5)
    assert found["classifier.weight"] == found["bert.pooler.dense.bias"] == 0.8
    assert found["bert.encoder.layer.1.output.LayerNorm.weight"] == 0.4
    assert found["bert.encoder.layer.0.attention.self.query.weight"] == 0.2
    assert found["bert.embeddings.word_embeddings.weight"] == 0.1


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_every_parameter_is_in_one_group_with_its_own_decay(architecture: str) -> None:
    run = tiny_run(architecture=architecture)
    optimizer = LayerwiseLRDecay(decay=0.5).optimizer(make_optimizer(run), run)
    listed = [weight for group in optimizer.param_groups for weight in group["params"]]
    assert len(listed) == len(set(listed)) == len(run.params)
    assert set(listed) == set(run.params.values())
    decay = {weight: group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert {name for name, weight in run.params.items() if decay[weight] == 0} == run.undecayed & set(run.params)
    assert all(group["fused"] for group in optimizer.param_groups)


def test_the_schedule_scales_each_rate() -> None:
    run = tiny_run(lr=0.8)
    optimizer = LayerwiseLRDecay(decay=0.5).optimizer(make_optimizer(run), run)
    peaks = [group["lr"] for group in optimizer.param_groups]
    scheduler = make_scheduler(optimizer, run.recipe, run.total_steps)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [peak / 2 for peak in peaks]


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_split_groups_leave_adams_arithmetic_alone(architecture: str) -> None:
    vanilla = toys.toy_train(Vanilla(), architecture)[0]
    assert toys.same(vanilla, toys.toy_train(LayerwiseLRDecay(decay=1.0), architecture)[0])
    # The same rate everywhere, and yet every parameter in a group of its own.
    assert toys.same(vanilla, toys.toy_train(Apart(), architecture)[0])


def test_frozen_layers_are_in_no_group() -> None:
    run = tiny_run()
    TopKTuning(k=1).setup(run)
    assert {name for name in rates(run, 0.5) if ".layer.0." in name or ".embeddings." in name} == set()


def test_lower_layers_move_less() -> None:
    run, _, _ = toys.toy_train(LayerwiseLRDecay(decay=0.01))
    fresh = toys.toy_model("bert", "classification", LayerwiseLRDecay().dropout).state_dict()
    moved = {name: float((weight.detach() - fresh[name]).abs().mean()) for name, weight in run.params.items()}
    parts = ("pooler.dense", "encoder.layer.1.output.dense", "encoder.layer.0.output.dense")
    top, low, bottom = (moved[f"bert.{part}.weight"] for part in parts)
    assert top > 10 * low > 100 * bottom > 0
