"""Bad data files, checkpoints, plugins and run folders: each is refused in one sentence, before any compute."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from finetune_bench.runner import plan
from tests.cli.refusals import Refused, refused
from tests.synthetic_store import make_store

__all__ = ["refused"]
pytestmark = pytest.mark.slow  # many alike

PAIRS = [f"text {i},{'ab'[i % 2]}" for i in range(40)]
FINE = "\n".join(["text,label", *PAIRS, ""])
DIGITS = "9" * 5000
ESCAPES = "\x1b[2J\x07\x9b31m\u202e"


def rows(*more: object, count: int = 40) -> str:
    return "\n".join(json.dumps({"text": f"text {i}", "label": i % 2}) for i in range(count)) + "".join(
        f"\n{item if isinstance(item, str) else json.dumps(item)}" for item in more
    )


DATA: list[tuple[str, str | bytes, str, str]] = [
    # file, content, options, what is said
    ("a.csv", "", "", "'a.csv' is empty"),
    ("a.csv", " \n\n ", "", "'a.csv' is empty"),
    ("a.csv", "text,label\n", "", "'a.csv' has no rows"),
    ("a.csv", "text\n" + "x\n" * 30, "", "There is no column called 'label'"),
    ("a.csv", FINE, "text=body", "There is no column called 'body'"),
    ("a.csv", FINE, "label=stars", "There is no column called 'stars'"),
    ("a.csv", FINE, "text_pair=text", "text=text and text_pair=text name the same column"),
    ("a.csv", FINE, "text=label", "text=label and label=label name the same column"),
    ("a.csv", FINE, "text=a,text_pair=a", "text=a and text_pair=a name the same column"),
    ("a.csv", FINE, "txet=body", "There is no option called 'txet'. Did you mean 'text'?"),
    ("a.csv", FINE, f"{'o' * 5000}=1", "There is no option called 'ooo"),
    ("a.csv", FINE, "kind=clasification", "Did you mean 'classification'?"),
    ("a.csv", FINE, "kind=regression", "line 2: the label of a regression must be a number such as 3.5; got 'a'"),
    ("a.csv", FINE, "metric=acuracy", "Did you mean 'accuracy'?"),
    ("a.csv", FINE, "metric=f1(c)", "There is no class called 'c'"),
    ("a.csv", FINE, "metric=accuracy(a)", "the metric 'accuracy' takes no class"),
    ("a.csv", FINE, "metric=pearson", "the metric 'pearson'"),
    ("a.csv", FINE, "missing=ignore", "missing must be refuse, drop or keep; got 'ignore'"),
    ("a.csv", FINE, "header=maybe", "header must be yes or no; got 'maybe'"),
    ("a.csv", FINE, "delimiter=ab", "delimiter must be one character"),
    ("a.csv", FINE, "delimiter='\"\"\"\"'", "delimiter must be one character"),
    ("a.csv", FINE, "encoding=klingon", "there is no encoding 'klingon'"),
    ("a.csv", FINE, "encoding=utf-16", "is not utf-16"),
    ("a.csv", FINE, "encoding=hex", "there is no encoding 'hex'"),
    ("a.csv", FINE, "validation=dev.csv", "There is no file 'dev.csv'"),
    ("a.csv", FINE, "test=notes.txt", "'notes.txt' can't be read as a table"),
    ("a.csv", FINE, "validation=model", "'model' can't be read as a table"),
    ("a.csv", FINE + 'x,"y', "", "can't be read"),
    ("a.csv", FINE + "x,a,b\n", "", "line 42: expected 2 values (text, label); got 3"),
    ("a.csv", FINE + "x\n", "", "line 42: expected 2 values (text, label); got 1"),
    ("a.csv", FINE + "text,label\n", "", "line 42: the header line comes again"),
    ("a.csv", FINE + ",a\n", "", "line 42: 'text' is missing"),
    ("a.csv", FINE + "x,\n", "", "line 42: 'label' is missing"),
    ("a.csv", FINE + "x,NA\n", "", "the label 'NA' usually stands for a missing one"),
    ("a.csv", FINE.encode() + b"\xea\xe0\xf4\xe5,a\n", "", "line 42: byte"),
    ("a.csv", FINE.replace("text,label", "text,text"), "", "two columns have the same name"),
    ("a.csv", "text,label\n" + "same,a\n" * 30, "", "every row has the label 'a'"),
    ("a.csv", "text,label\n" + "\n".join(f"t {i},rare {i}" for i in range(20)), "", "occurs only once"),
    ("a.csv", "text,label\nx,a\ny,b\n", "", "too few to hold out"),
    ("a.csv", "text,label\n" + "same,a\nsame,b\n" * 20, "", "too few to hold out"),
    ("a.csv", "\n".join(f"{i},{i},{i}" for i in range(30)), "", "has no header line that names the columns"),
    ("a.csv", ",".join(f"c{i}" for i in range(100_000)) + "\n" + "1," * 99_999 + "1", "", "no column called 'text'"),
    ("a.csv", f"{'c' * 1_000_000},b\n1,2\n", "", "no column called 'text'"),
    ("a.csv", FINE + f"x,{'l' * 1_000_000}", "kind=regression", "got 'a'"),
    ("a.csv", FINE.replace(",a\n", f",{ESCAPES}\n"), "kind=regression", "got '\\x1b[2J"),
    ("a.csv", f"text,{ESCAPES}\nx,y\n", "", "no column called 'label'"),
    ("a.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "", "is a pointer of Git LFS"),
    ("a.csv", b"\x1f\x8b\x08\0" + bytes(range(256)) * 8, "", "a.csv"),
    ("a.csv", b"PK\x03\x04" + bytes(range(256)) * 8, "", "a.csv"),
    ("a.csv", b"\0" * 1000, "", "a.csv"),
    ("a.tsv", "text\tlabel\nx\ta\tb\n", "", "line 2: expected 2 values"),
    ("a.tsv", FINE.replace(",", " "), "", "a.tsv"),
    ("a.json", "{", "", "line 1: not valid JSON"),
    ("a.json", "{}", "", "expected a list of objects"),
    ("a.json", "[]", "", "'a.json' has no rows"),
    ("a.json", "[1, 2]", "", "row 1: expected an object, {...}; got int"),
    ("a.json", "null", "", "expected a list of objects"),
    ("a.json", "[" * 100_000, "", "brackets within brackets too deep"),
    ("a.json", f"[{DIGITS}]", "", "can't be read as JSON"),
    ("a.json", rows(), "", "If each line is an object, name the file .jsonl"),
    ("a.jsonl", rows("{"), "", "line 41: not valid JSON"),
    ("a.jsonl", rows("3"), "", "line 41: expected an object"),
    ("a.jsonl", rows([1]), "", "line 41: expected an object"),
    ("a.jsonl", rows('{"text": "x", "text": "y", "label": 1}'), "", "a key is given twice"),
    ("a.jsonl", rows({"text": "x"}), "", "line 41: 'label' is missing"),
    ("a.jsonl", rows({"text": None, "label": 1}), "", "line 41: 'text' is missing"),
    ("a.jsonl", rows({"text": ["x"], "label": 1}), "", "'text' must be a text or a number; got list"),
    ("a.jsonl", rows({"text": "x", "label": {"a": 1}}), "", "'label' must be a text or a number; got dict"),
    ("a.jsonl", rows('{"text": "\\ud800", "label": 1}'), "", "'text' holds half a character"),
    ("a.jsonl", rows('{"text": "x", "label": "\\udfff"}'), "", "'label' holds half a character"),
    ("a.jsonl", rows(f'{{"text": "x", "label": {DIGITS}}}'), "", "line 41: can't be read as JSON"),
    ("a.jsonl", rows('{"text": "x", "label": ' + "[" * 50_000), "", "line 41: not a table"),
    ("a.jsonl", rows('{"text": "x", "label": NaN}'), "", "line 41: 'label' is missing"),
    ("a.jsonl", rows({"text": "x", "label": 1e39}), "kind=regression", "beyond single precision"),
    ("a.jsonl", rows({"text": "x", "label": "inf"}), "kind=regression", "must be a number such as 3.5; got 'inf'"),
    ("a.jsonl", rows({"text": "x", "label": -1}), "kind=regression", "usually stands for a missing one"),
    ("a.csv", FINE.replace(",a", ",1.5").replace(",b", ",1.5"), "kind=regression", "there is nothing to learn"),
    ("a.csv", FINE, "validation=other.jsonl", "'other.jsonl', line 1: the class '0' is not in the training file"),
    ("a.csv", FINE, "test=a.csv/b.csv", "There is no file 'a.csv/b.csv'"),
    ("a.parquet", "PAR1", "", "can't be read as parquet"),
    ("a.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "", "can't be read as parquet"),
    ("a.parquet", FINE, "", "can't be read as parquet"),
    ("a.arrow", FINE, "", "expected a file ending in"),
    ("a.csv.gz", FINE, "", "expected a file ending in"),
]  # fmt: skip


PARQUET = [
    ({"text": ["x"] * 30}, "There is no column called 'label'"),
    ({"text": [], "label": []}, "has no rows"),
    ({"text": [f"t {i}" for i in range(29)] + [None], "label": [0, 1] * 15}, "row 30: 'text' is missing"),
    ({"text": [f"t {i}" for i in range(30)], "label": [0, 1] * 14 + [0, None]}, "row 30: 'label' is missing"),
    ({"text": [f"t {i}".encode() for i in range(30)], "label": [0, 1] * 15}, "got bytes"),
    ({"text": [["a"]] * 30, "label": [0, 1] * 15}, "'text' must be a text or a number"),
    ({"text": [f"t {i}" for i in range(30)], "label": pd.to_datetime(["2020-01-01"] * 30)}, "'label' must be"),
]


def config(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text("utf-8")) | changes
        (folder / "config.json").write_text(json.dumps(values), "utf-8")

    return change


def content(name: str, text: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def without(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def tensors(header: object, data: bytes = b"") -> Callable[[Path], object]:
    text = json.dumps(header).encode()
    return content("model.safetensors", struct.pack("<Q", len(text)) + text + data)


CHECKPOINTS: list[tuple[Callable[[Path], object], str]] = [
    (without("config.json"), "expected a checkpoint's folder with a config.json"),
    (without("model.safetensors"), "has no .safetensors file"),
    (without("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
    (content("config.json", ""), "the configuration of './broken' can't be read"),
    (content("config.json", "[]"), "the configuration of './broken' can't be read"),
    (content("config.json", "null"), "the configuration of './broken' can't be read"),
    (content("config.json", "{}"), "the configuration of './broken' can't be read"),
    (content("config.json", b"\xff\xfe\0"), "the configuration of './broken' can't be read"),
    (content("config.json", "[" * 100_000), "the configuration of './broken' can't be read"),
    (content("config.json", '{"model_type": "bert", "vocab_size": ' + DIGITS + "}"), "the configuration of './broken'"),
    (config(model_type=3), "the configuration of './broken' can't be read"),
    (config(model_type="t-rex"), "the configuration of './broken' can't be read"),
    (config(model_type=ESCAPES), "the configuration of './broken' can't be read"),
    (config(model_type="t5"), "broken'"),
    (config(model_type="vit"), "broken'"),
    (config(hidden_size="16"), "broken'"),
    (config(hidden_size=-16), "broken'"),
    (config(hidden_size=0), "broken'"),
    (config(hidden_size=17), "broken'"),
    (config(hidden_size=None), "broken'"),
    (config(hidden_size=10**12), "broken'"),
    (config(num_hidden_layers="two"), "broken'"),
    (config(num_hidden_layers=-1), "broken'"),
    (config(num_hidden_layers=1), "no place for"),
    (config(num_hidden_layers=3), "would be random"),
    (config(num_attention_heads=0), "broken'"),
    (config(num_attention_heads=3), "broken'"),
    (config(intermediate_size=48), "don't fit its config.json"),
    (config(vocab_size=5), "broken'"),
    (config(vocab_size=[]), "broken'"),
    (config(max_position_embeddings=0), "broken'"),
    (config(max_position_embeddings=16), "has positions for 16 tokens"),
    (config(type_vocab_size=0), "broken'"),
    (config(hidden_act="sigmoidal"), "broken'"),
    (config(hidden_act=7), "broken'"),
    (config(hidden_dropout_prob=2), "broken'"),
    (config(hidden_dropout_prob="much"), "broken'"),
    (config(layer_norm_eps="small"), "broken'"),
    (config(quantization_config={"quant_method": "gptq", "bits": 4}), "are quantised (gptq)"),
    (config(quantization_config=[4]), "broken'"),
    (config(auto_map={"AutoConfig": "evil.py"}, model_type="evil"), "broken'"),
    (without("tokenizer.json"), "broken'"),
    (lambda folder: (folder / "model.safetensors").rename(folder / "weights.safetensors"), "Rename the file"),
    (content("adapter_config.json", "{}"), "is an adapter of peft, not a model"),
    (content("tokenizer.json", ""), "the tokenizer of './broken' can't be read"),
    (content("tokenizer.json", "{}"), "the tokenizer of './broken' can't be read"),
    (content("tokenizer.json", "[]"), "the tokenizer of './broken' can't be read"),
    (content("tokenizer.json", "[" * 100_000), "the tokenizer of './broken' can't be read"),
    (content("tokenizer.json", b"\xff" * 100), "the tokenizer of './broken' can't be read"),
    (content("tokenizer_config.json", "[]"), "broken'"),
    (content("tokenizer_config.json", '{"tokenizer_class": "NoSuchTokenizer"}'), "broken'"),
    (content("tokenizer_config.json", '{"pad_token": 3}'), "broken'"),
    (content("model.safetensors", ""), "weights of './broken'"),
    (content("model.safetensors", "version https://git-lfs.github.com/spec/v1\n"), "is a pointer of Git LFS"),
    (content("model.safetensors", b"\xff" * 1000), "broken'"),
    (tensors([]), "broken'"),
    (tensors({}), "broken'"),
    (tensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 999]}}, b"\0" * 8), "broken'"),
    (tensors({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8), "broken'"),
    (tensors({ESCAPES: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8), "broken'"),
]  # fmt: skip

METHOD = 'from finetune_bench.method import Method\nclass Odd(Method):\n    """An odd method."""\n    name = \'odd\'\n'
PLUGINS = [
    ("", "defines no Method, Task, Analysis or Report"),
    ("x =", "failed with SyntaxError"),
    ("\0", "failed with"),
    (b"# -*- coding: klingon -*-\n", "failed with SyntaxError"),
    (b"x = '\xff'", "failed with SyntaxError"),
    ("(" * 10_000, "failed with"),
    ("raise ValueError('no luck')", "failed with ValueError: no luck"),
    (f"raise ValueError({ESCAPES!r})", "failed with ValueError: \\x1b[2J"),
    ("raise ValueError('x' * 5_000_000)", "failed with ValueError: xxx"),
    ("raise ValueError('one\\ntwo\\nthree')", "failed with ValueError: one two three"),
    ("import no_such_module", "failed with ModuleNotFoundError"),
    ("import sys\nsys.exit(0)", "failed with SystemExit"),
    ("import sys\nsys.exit('bye')", "failed with SystemExit: bye"),
    ("def f(): f()\nf()", "failed with RecursionError"),
    (METHOD.replace("'odd'", "'hype'"), "the name 'hype'"),
    (METHOD.replace("'odd'", "'Odd One'"), "may hold a to z, 0 to 9 and _ only"),
    (METHOD.replace("'odd'", "3"), "has no `name`"),
    (METHOD.replace("'odd'", f"'{ESCAPES}'"), "may hold a to z"),
    (METHOD + "    def __init__(self): raise ValueError('no')\n", "Odd failed with ValueError: no"),
    (METHOD + "    def __init__(self): raise SystemExit(0)\n", "Odd failed with SystemExit: 0"),
    (METHOD + "    def warning(self, facts): raise ValueError('no')\n", "mend its `warning`"),
    (METHOD + "    def warning(self, facts): return 3\n", "its `warning` must return a sentence or None; got 3"),
    (METHOD + "    def warning(self, facts): return 'x', 'y' * 5_000_000\n", "its `warning` must return"),
    (METHOD + "    def passes(self, inner): raise SystemExit(1)\n", "mend its `passes`"),
    (METHOD + "    def passes(self, inner): return 2\n", "its `passes` must return Passes; got 2"),
    (METHOD + "    def unsupported(self, facts): raise KeyError('x')\n", "mend its `unsupported`"),
    (METHOD + f"    def unsupported(self, facts): return {ESCAPES!r}\n", "can't run in any cell of this study"),
    (METHOD + "    def unsupported(self, facts): return 'x' * 5_000_000\n", "can't run in any cell of this study"),
    (METHOD + "    def noise_scale(self): return 'loud'\n", "its `noise_scale` must return"),
    (METHOD + "    def __repr__(self): raise ValueError('no')\n    def passes(self, inner): return self\n", "`passes`"),
    (METHOD + "    def passes(self, inner): raise type('E', (Exception,), {'__str__': lambda e: 1/0})\n", "`passes`"),
]  # fmt: skip


UNREADABLE_ROWS = ["", "[]", "null", "3", "{}", '{"id": 3}', "[" * 100_000, b"\xff\xfe", '{"a": ' + DIGITS + "}"]
OF_RUNS = [
    ("report run --baseline nope", "There is no baseline of this report called 'nope'"),
    ("report run --out run/file", "'run/file' is no path that can be read or written"),
    ("report run --out run/file/below", "'run/file/below' is no path that can be read or written"),
    ("report run --check --out nowhere", "--check: expected a written report in 'nowhere'"),
    ("report run/cells", "'run/cells' holds no cells"),
    ("compare run run/cells", "'run/cells' holds no cells"),
    ("merge run run", "'run' is to be made from other stores"),
    ("merge out run run/file", "'run/file' holds no cells"),
    ("power empty", "no method has two seeds that are paired with vanilla"),
    ("show 0 --run run", "give more digits"),
    ("show 0123456789abcdef --run run", "There is no method, task, report, run or cell called '0123456789abcdef'"),
    ("show ran", "There is no method, task, report, run or cell called 'ran'"),
]


def name(case: object) -> str:
    return ascii(case)[1:40] if isinstance(case, str | bytes) else ""


@pytest.mark.parametrize(("file", "text", "options", "expected"), DATA, ids=name)
def test_a_bad_data_file(file: str, text: str | bytes, options: str, expected: str, refused: Refused) -> None:
    Path(file).write_bytes(text if isinstance(text, bytes) else text.encode())
    shutil.copy("data.jsonl", "other.jsonl")
    assert expected in refused("run --tasks", f"{file}({options})" if options else file)


@pytest.mark.parametrize(("frame", "expected"), PARQUET, ids=name)
def test_a_bad_parquet_file(frame: dict[str, Any], expected: str, refused: Refused) -> None:
    pd.DataFrame(frame).to_parquet("a.parquet")
    assert expected in refused("run --tasks a.parquet")


@pytest.mark.parametrize(("change", "expected"), CHECKPOINTS, ids=name)
def test_a_bad_checkpoint(change: Callable[[Path], object], expected: str, refused: Refused) -> None:
    shutil.copytree("model", "broken")
    change(Path("broken"))
    assert expected in refused("run --model ./broken")


@pytest.mark.parametrize(("source", "expected"), PLUGINS, ids=name)
def test_a_bad_plugin(source: str | bytes, expected: str, refused: Refused) -> None:
    Path("odd.py").write_bytes(source if isinstance(source, bytes) else source.encode())
    assert expected in refused("run --plugin odd.py --methods odd")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of made-up rows."""
    return make_store(tmp_path_factory.mktemp("run") / "run").root


def cell_of(run: Path) -> str:
    return sorted(path.name for path in (run / "cells").iterdir())[0]


@pytest.mark.parametrize(("command", "expected"), OF_RUNS, ids=name)
def test_a_bad_run_folder(command: str, expected: str, run: Path, refused: Refused) -> None:
    shutil.copytree(run, "run")
    Path("run/file").write_text("")
    Path("empty/cells").mkdir(parents=True)
    assert expected in refused(command)


@pytest.mark.parametrize("text", UNREADABLE_ROWS, ids=name)
def test_a_row_that_cannot_be_read(text: str | bytes, run: Path, refused: Refused) -> None:
    shutil.copytree(run, "run")
    (Path("run/cells") / cell_of(run) / "row.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "is damaged: " in refused(f"show {cell_of(run)} --run run")


def test_a_run_folder_that_cannot_be_written_to(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.os, "access", lambda path, _: Path(path) != Path.cwd())  # the tests may run as root
    assert f"--out: '{Path.cwd()}' can't be written to" in refused("run")
