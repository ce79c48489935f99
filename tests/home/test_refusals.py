"""What would train something else than was meant, without a word, is refused; so is what would fail late."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from finetune_bench import home
from finetune_bench.errors import FinetuneBenchError, UsageError
from finetune_bench.model.dropout import Dropout
from finetune_bench.testing import toys


def bert() -> nn.Module:
    return toys.toy_model("bert", "classification", Dropout.KEEP)


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 20, (8, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": torch.arange(8) % 3}


def train(tuned: home.Attached, steps: int) -> None:
    optimizer = tuned.optimizer(SGD(tuned.parameters(), lr=0.1))
    for _ in range(steps):
        optimizer.zero_grad()
        tuned.backward(batch())
        tuned.before_step()
        optimizer.step()
        tuned.after_step()


def with_adapters() -> nn.Module:
    peft = pytest.importorskip("peft")
    adapters = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks a model for what has another name now
        return peft.get_peft_model(bert(), adapters)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.compile(bert(), backend="eager"), "expected the model itself; a model of torch.compile"),
        (with_adapters, r"has adapters of peft. Attach the plain one, .* 'hype\+peft\(kind=lora\)'"),
        (lambda: nn.DataParallel(bert()), "has no config.num_labels; attach what it wraps, on one device"),
        (lambda: AutoModel.from_config(bert().config), "BertModel gives no logits. Load it with AutoModelForSeq"),
        (
            lambda: AutoModelForCausalLM.from_config(toys.toy_model("llama", "classification", Dropout.KEEP).config),
            r"LlamaForCausalLM gives logits of shape \(2, 3, \d+\) for two texts of three tokens",
        ),
    ],
)
def test_what_is_no_plain_text_classifier_is_refused(make: Any, said: str) -> None:
    model = make()
    with pytest.raises(UsageError, match=said):
        home.attach("hype", model, total_steps=1)


def test_a_class_that_its_configuration_does_not_make_is_refused() -> None:
    class Needy(type(bert())):  # type: ignore[misc]
        def __init__(self, config: AutoConfig, more: int) -> None:
            super().__init__(config)

    with pytest.raises(UsageError, match=r"Needy\(config\) failed with TypeError"):
        home.attach("vanilla", Needy(bert().config, 1), total_steps=1)


def test_the_dropout_of_a_head_of_the_users_own_is_switched_off() -> None:
    """It ended in a KeyError."""
    model = bert()
    model.classifier = nn.Sequential(nn.Dropout(0.3), nn.Linear(16, 3))
    with home.attach("hype", model, total_steps=1) as tuned:
        assert model.classifier[0].p == 0
        train(tuned, 1)
    assert model.classifier[0].p == 0.3


@pytest.mark.parametrize(
    ("kind", "said"), [("regresion", "kind= must be classification or"), ("regression", "needs a model of one output")]
)
def test_the_kind_has_to_be_the_models(kind: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        home.attach("hype", bert(), total_steps=1, kind=kind)


def test_methods_are_attached_once() -> None:
    model = bert()
    tuned = home.attach("hype", model, total_steps=1)
    with pytest.raises(UsageError, match="end that training first, with finish"):
        home.attach("rdrop", model, total_steps=1)
    tuned.close()
    home.attach("rdrop", model, total_steps=1).close()
    with pytest.raises(UsageError):
        home.attach("hype", model, total_steps=1, kind="regression")
    home.attach("hype", model, total_steps=1)
    del model, tuned
    gc.collect()


@pytest.mark.parametrize("method", ["vanilla", "peft(kind=lora,r=2)"])
def test_an_optimiser_without_weights_that_train_is_refused(method: str) -> None:
    """That of another model trained nothing; one made before attach left LoRA's weights as they were."""
    model = bert()
    early = AdamW((bert() if method == "vanilla" else model).parameters())
    with home.attach(method, model, total_steps=1) as tuned:
        with pytest.raises(UsageError, match=r"the optimiser has \d+ of the \d+ weights that train, and not 'bert"):
            tuned.optimizer(early)
        tuned.optimizer(AdamW(tuned.parameters()))


def test_steps_are_made_while_methods_are_in_and_their_weights_are_out() -> None:
    model = bert()
    tuned = home.attach("ema", model, total_steps=1)
    train(tuned, 1)
    with tuned.evaluating():
        with tuned.evaluating(), pytest.raises(FinetuneBenchError, match="train outside of it"):
            tuned.backward(batch())
        with pytest.raises(FinetuneBenchError, match="call finish\\(\\) outside of it"):
            tuned.finish()
        averaged = tuned.state_dict()["classifier.weight"].clone()
    assert not torch.equal(tuned.state_dict()["classifier.weight"], averaged)
    tuned.finish()
    with tuned.evaluating():
        assert torch.equal(tuned.state_dict()["classifier.weight"], averaged)
    with pytest.raises(FinetuneBenchError, match="The training is finished"):
        tuned.backward(batch())
    with pytest.raises(UsageError, match="share= must be above 0 and at most 1; got -1"):
        attached = home.attach("vanilla", bert(), total_steps=1)
        attached.optimizer(SGD(attached.parameters()))
        attached.backward(batch(), share=-1)


def test_a_model_that_was_moved_is_refused() -> None:
    model = bert()
    tuned = home.attach("vanilla", model, total_steps=1)
    tuned.optimizer(SGD(tuned.parameters()))
    model.double()
    with pytest.raises(FinetuneBenchError, match="was moved to cpu, torch.float64 after attach"):
        tuned.backward(batch())


@pytest.mark.parametrize(
    ("method", "steps", "told"), [("swa", 3, 3), ("swa", 1, 1), ("hype", 3, None), ("swa", 2, None)]
)
def test_another_number_of_steps_is_told_where_a_method_acts_by_it(method: str, steps: int, told: int | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with home.attach(method, bert(), total_steps=2) as tuned:
            train(tuned, steps)
    said = [str(warning.message) for warning in caught if "attach was told" in str(warning.message)]
    if told is None:
        assert said == []
    else:
        (text,) = said
        assert text.startswith(f"attach was told of 2 steps, and this is the end of step {told}: a method acts")
