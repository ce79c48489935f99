"""Without a network the hub is asked once, and nothing waits for it or writes about it after that."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import huggingface_hub
import pytest
from huggingface_hub import constants

from finetune_bench.errors import ModelError
from finetune_bench.model import hub, pretrained
from finetune_bench.runner.inputs import forget

ASKED: list[str] = []


class Client:
    """The hub's client without a network; every request by another way fails the test."""

    def head(self, url: str, timeout: float) -> None:
        assert timeout <= 10
        ASKED.append(url)
        raise OSError("no network")

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"{name} was called")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(huggingface_hub, "get_session", Client)
    monkeypatch.setattr(huggingface_hub.utils._http, "get_session", Client)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    ASKED.clear()
    hub.forget()
    yield
    hub.forget()


def refusal(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        pretrained.fingerprint(name)
    return str(caught.value)


def test_without_a_network_a_model_is_refused_after_one_question() -> None:
    expected = (
        "--model: 'nobody/nothing' is neither a folder here nor a checkpoint on the hub or in its cache "
        "(the hub can't be reached). Give a folder, or connect once to download it."
    )
    assert refusal("nobody/nothing") == expected
    assert refusal("nobody/nothing") == expected
    assert ASKED == [constants.ENDPOINT]
    assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
    assert constants.HF_HUB_OFFLINE and hub.environment() == {"HF_HUB_OFFLINE": "1"}  # so workers don't ask again
    forget()  # the next plan asks anew
    assert not constants.HF_HUB_OFFLINE and hub.environment() == {}
    assert not hub.is_reachable() and len(ASKED) == 2


def test_who_asks_to_be_offline_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "(the hub is not asked, since HF_HUB_OFFLINE is set)" in refusal("nobody/nothing")
    hub.forget()
    assert (ASKED, constants.HF_HUB_OFFLINE, hub.environment()) == ([], True, {})
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # of the tests, which is left alone
