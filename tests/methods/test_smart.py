from __future__ import annotations

import torch

from finetune_bench.method import View
from finetune_bench.method.stack import Stack
from finetune_bench.methods.smart import SMART, climb_adversary
from finetune_bench.model.dropout import Dropout
from finetune_bench.recipe import Recipe
from finetune_bench.testing import toys
from tests.tiny_run import first_step, tiny_run


def test_the_climb_by_hand() -> None:
    noise, gradient = torch.zeros(1, 2, 2), torch.tensor([[[2.0, -1.0], [0.0, 0.0]]])
    paper = climb_adversary(noise, gradient, 0.1, 0.07, "paper")
    torch.testing.assert_close(paper, torch.tensor([[[0.07, -0.05], [0.0, 0.0]]]))  # 0.1 · (1, −½), cut to 0.07
    code = climb_adversary(noise + 0.1, gradient, 0.1, 0.07, "mtdnn")
    torch.testing.assert_close(code, torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]), atol=2e-5, rtol=0)  # (0.3, 0) / 0.3


def test_the_noise_is_in_its_ball_and_touches_no_gradient() -> None:
    smart = SMART(eps=0.05, init_scale=0.1, learning_rate=0.1, steps=3)
    run = tiny_run(smart)
    step = first_step(run)
    smart.setup(run)
    mark = step.mark()
    clean = step.forward()
    noise = smart.find_noise(step, clean, View(), mark)
    assert 0.04 < float(noise.abs().max()) <= 0.05 + 1e-8
    padding = step.batch.inputs["attention_mask"] == 0
    assert padding.any()
    assert not noise[padding].any()
    assert all(weight.grad is None for weight in run.params.values())


def test_without_noise_the_passes_are_one() -> None:
    """Dropout on: the adversarial pass repeats the clean one's masks, and embeds nothing twice."""
    smart = SMART(init_scale=0.0, learning_rate=0.0)
    run = tiny_run(smart)
    step = first_step(run)
    smart.setup(run)
    logs = step.objective().logs
    assert float(logs["smart_divergence"]) == 0
    assert float(logs["smart_teacher_divergence"]) == 0  # θ̄ = θ
    fresh = SMART(init_scale=0.0, learning_rate=0.0, share_masks=False)
    run = tiny_run(fresh)
    fresh.setup(run)
    assert float(first_step(run).objective().logs["smart_divergence"]) > 1e-4


def test_the_climb_finds_more_than_chance() -> None:
    found = []
    for steps, rate in ((1, 0.0), (3, 0.02)):
        smart = SMART(eps=0.05, init_scale=0.01, learning_rate=rate, steps=steps, mu=0.0)
        run = tiny_run(smart, dropout=Dropout.ALL_OFF)
        step = first_step(run)
        run.generator("smart").manual_seed(1)
        smart.setup(run)
        found.append(float(step.objective().logs["smart_divergence"]))
    assert found[1] > 2 * found[0] > 0


def test_the_teacher_follows() -> None:
    smart = SMART(beta=0.75)
    run = tiny_run(smart)
    smart.setup(run)
    start = {name: weight.detach().clone() for name, weight in run.params.items()}
    with torch.no_grad():
        for weight in run.params.values():
            weight.add_(1.0)
    smart.after_step(run)
    for name, teacher in smart.teacher_.items():
        torch.testing.assert_close(teacher, start[name] + 0.25)
    step = first_step(run)
    assert float(step.objective().logs["smart_teacher_divergence"]) > 0


def test_both_terms_are_in_the_loss() -> None:
    smart = SMART(strength=3.0, mu=5.0, eps=0.1, init_scale=0.1, learning_rate=0.1)
    run = tiny_run(smart)
    smart.setup(run)
    with torch.no_grad():
        for weight in run.params.values():
            weight.mul_(1.1)
    step = first_step(run)
    torch.manual_seed(0)
    found = step.objective()
    terms = 3.0 * found.logs["smart_divergence"] + 5.0 * found.logs["smart_teacher_divergence"]
    torch.testing.assert_close(found.loss.detach(), step.task_losses[0] + terms)


def test_what_is_refused_said_and_split() -> None:
    assert "fp16" in str(toys.unsupported(SMART(), recipe=Recipe(precision="fp16")))

    def said(**parameters: object) -> list[str]:
        stack = Stack([SMART(**parameters)])  # type: ignore[arg-type]
        return stack.warnings(toys.toy_facts(stack))

    assert "only its teacher term acts" in said()[0]
    assert "next to no effect" in said(mu=0.0)[0]
    assert said(eps=0.1) == said(scale="mtdnn") == said(strength=0.0) == []
    assert {name: twin.strength for name, twin in SMART().effects().items()} == {"teacher": 0.0, "adversary": 1.0}  # type: ignore[attr-defined]
