"""Try every architecture for which transformers has a text classifier: built tiny, planned and trained.

    python -m benchmarks.models [FAMILY ...] [--write docs/models.md]

Each family is made with two layers and random weights, saved with a tokenizer of words, and goes through a plan and two
steps of vanilla, of its dropout-off control and of HyPe; or a sentence says why not. While the cells train, every
dropout is watched: where its input is no distribution, as attention probabilities are, it acts on hidden states.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers import __version__ as library_version
from transformers import logging as library_logging
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as FAMILIES

from finetune_bench.errors import FinetuneBenchError
from finetune_bench.recipe import Recipe
from finetune_bench.runner.cell import WorkerContext, run_cell
from finetune_bench.runner.plan import make_plan
from finetune_bench.study.study import Study
from finetune_bench.testing.toys import tiny_checkpoint, tiny_texts

WIDTH, LAYERS, HEADS, WIDER, POSITIONS = 32, 2, 2, 48, 64
LARGEST = 3_000_000  # parameters of a model that counts as tiny

# What makes a configuration tiny, by the name of the field, whatever the architecture.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "dim", "embedding_size", "d_embed"), WIDTH),
    **dict.fromkeys(("true_hidden_size", "word_embed_proj_dim", "model_dim", "lm_head_hidden_size"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers"), LAYERS),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers", "num_encoder_layers", "n_encoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "num_key_value_heads", "num_kv_heads"), HEADS),
    **dict.fromkeys(("intermediate_size", "d_ff", "d_inner", "ffn_dim", "n_inner", "dff", "hidden_dim"), WIDER),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size", "moe_intermediate_size"), WIDER),
    **dict.fromkeys(("shared_expert_intermediate_size", "expert_ff", "feed_forward_size"), WIDER),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_size", "d_head", "qk_nope_head_dim"), WIDTH // HEADS),
    **dict.fromkeys(("v_head_dim", "qk_rope_head_dim", "kv_lora_rank", "q_lora_rank"), WIDTH // HEADS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"), POSITIONS),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "n_shared_experts", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("first_k_dense_replace",), 1),
}
# What a family needs besides.
OWN: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "esm": {"vocab_size": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lilt": {"hidden_size": 48},
    "luke": {"entity_vocab_size": 64, "entity_emb_size": 16},
    "ministral": {"head_dim": 16},
    "mistral4": {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "perceiver": {"d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 2, "num_self_attention_heads": 2},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
    "roc_bert": {"pronunciation_vocab_size": 64, "shape_vocab_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
    "mobilebert": {"intra_bottleneck_size": 32},
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1},
    "t5": {"decoder_start_token_id": 0},
    "mt5": {"decoder_start_token_id": 0},
    "umt5": {"decoder_start_token_id": 0},
}


@dataclass
class Outcome:
    """A family was planned and trained, or refused; this says which.

    Attributes:
        family: the `model_type`.
        batch_layout: how its batches are laid out; empty where nothing was planned.
        trained: which of the three trained, in words.
        left_on: what dropout stays on under the control, from its row.
        remark: warnings, or why not.
        crashed: whether something was neither trained nor refused.
    """

    family: str
    batch_layout: str = ""
    trained: str = ""
    left_on: str = ""
    remark: str = ""
    crashed: bool = False


class Watch(TorchFunctionMode):
    """Count dropouts whose input is no distribution over something."""

    def __init__(self) -> None:
        super().__init__()
        self.on_hidden = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "dropout" and isinstance(args[0] if args else None, Tensor):
            rate = kwargs["p"] if "p" in kwargs else args[1] if len(args) > 1 else 0.5
            training = kwargs["training"] if "training" in kwargs else args[2] if len(args) > 2 else True
            if training and rate > 0 and not is_distribution(args[0].detach()):
                self.on_hidden += 1
        return func(*args, **kwargs)


def is_distribution(values: Tensor) -> bool:
    """Return whether the last axis holds probabilities that sum to 1 (or to 0, where all is masked)."""
    sums = values.float().sum(-1)
    return bool((values >= 0).all() and ((sums - 1).abs().minimum(sums.abs()) < 1e-3).all())


def tiny_config(family: str) -> Any:
    """Return the configuration of a family with everything small."""
    usual = AutoConfig.for_model(family)
    config = AutoConfig.for_model(family, **_small(usual, family))
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for token in ("pad", "bos", "eos", "cls", "sep"):
            if isinstance(getattr(part, f"{token}_token_id", None), int | list):
                setattr(part, f"{token}_token_id", {"pad": 0, "bos": 2, "cls": 2}.get(token, 3))
    return config


def _small(config: Any, family: str) -> dict[str, Any]:
    fields = config.to_dict()
    values: dict[str, Any] = {name: size for name, size in SIZES.items() if isinstance(fields.get(name), int)}
    values |= {"vocab_size": 64} if isinstance(fields.get("vocab_size"), int) else {}
    for name, part in fields.items():
        if isinstance(part, dict) and "model_type" in part:
            values[name] = {"model_type": part["model_type"]} | _small(getattr(config, name), part["model_type"])
        elif isinstance(part, list) and len(part) == fields.get("num_hidden_layers") and len(part) > LAYERS:
            values[name] = part[:LAYERS]
    return values | OWN.get(family, {})


def make_checkpoint(family: str, like: Path, folder: Path) -> Path:
    """Save a tiny model of a family with random weights, and the tokenizer of another checkpoint beside it."""
    config = tiny_config(family)
    with torch.device("meta"):
        numbers = sum(weight.numel() for weight in AutoModelForSequenceClassification.from_config(config).parameters())
    if numbers > LARGEST:
        raise ValueError(f"{numbers / 1e6:.0f} million parameters remain")
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (like / name).is_file():
            shutil.copy(like / name, folder / name)
    return folder


def try_family(family: str, like: Path, texts: Path, folder: Path) -> Outcome:
    """Plan and train a family."""
    try:
        checkpoint = make_checkpoint(family, like, folder / "model")
    except Exception as error:
        return Outcome(family, remark=f"not built tiny: {first_line(error)}")
    recipe = Recipe(batch_size=8, epochs=None, steps=2, max_length=32)
    study = Study(
        ("vanilla", "hype(eps=0.1)"), (str(texts),), (str(checkpoint),), seeds=(1,), recipe=recipe, device="cpu",
        out=folder / "run",
    )  # fmt: skip
    try:
        plan = make_plan(study)
    except FinetuneBenchError as error:
        if "can't run in any cell" not in str(error):
            return Outcome(family, remark=f"refused: {clean(error, folder)}")
        try:
            plan, refused = make_plan(dataclasses.replace(study, methods=("vanilla",))), clean(error, folder)
        except FinetuneBenchError as other:
            return Outcome(family, remark=f"refused: {clean(other, folder)}")
        except Exception as other:
            return Outcome(family, remark=f"the plan crashed: {first_line(other)}", crashed=True)
    except Exception as error:
        return Outcome(family, remark=f"the plan crashed: {first_line(error)}", crashed=True)
    else:
        refused = ""
    return train(family, plan, refused, folder)


def train(family: str, plan: Any, refused: str, folder: Path) -> Outcome:
    """Train every cell of a plan, and watch its dropout."""
    warned = [clean(note, folder) for note in plan.notes if note.startswith("Warning")]
    outcome = Outcome(family, plan.cells[0].recipe.batch_layout, remark=" ".join([refused, *warned]).strip())
    trained = []
    for cell in plan.todo:
        with Watch() as watch:
            row = run_cell(cell, WorkerContext(plan.store, torch.device("cpu")))
        if row["status"] != "done":
            outcome.crashed, outcome.remark = True, f"{cell.label} failed: {row['reason']} {outcome.remark}"
            continue
        if "hidden_off" in cell.label:
            outcome.left_on = ", ".join(f"{name} {rate:g}" for name, rate in row["dropout"].items())
        if watch.on_hidden and cell.label != "vanilla":
            outcome.crashed = True
            outcome.remark = f"{cell.label} trained with {watch.on_hidden} dropouts on hidden states {outcome.remark}"
        trained.append("control" if "hidden_off" in cell.label else cell.label.partition("(")[0])
    outcome.trained = ", ".join(trained)
    return outcome


def first_line(error: BaseException) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0][:200]


def clean(text: object, folder: Path) -> str:
    """Return a sentence without this machine's folders."""
    return str(text).replace(f"{folder}/", "").partition("\n")[0].replace("|", "\\|")


def row_of(outcome: Outcome) -> str:
    """Return a family's row of the page."""
    cells = (outcome.batch_layout, outcome.trained, outcome.left_on, outcome.remark)
    return f"| `{outcome.family}` | {' | '.join(text or '—' for text in cells)} |"


def rows_of(page: Path) -> dict[str, str]:
    """Return the rows of the page as it stands, by family."""
    lines = page.read_text("utf-8").splitlines() if page.is_file() else []
    return {line.split("`")[1]: line for line in lines if line.startswith("| `") and "model_type" not in line}


def table(rows: dict[str, str]) -> str:
    """Return the page."""
    works = [row for row in rows.values() if "vanilla" in row.split(" | ")[2]]
    lines = [
        "# Models",
        "",
        "Every architecture for which transformers has a text classifier, built with two layers and random weights,",
        "planned and trained for two steps: vanilla, its control with hidden dropout off, and HyPe. What can't work is",
        "refused in the plan, with the sentence that stands here. *Stays on* is the dropout that the control leaves,",
        f"which acts on attention probabilities. {len(works)} of {len(rows)} train, with torch",
        f"{torch.__version__.partition('+')[0]} and transformers {library_version}.",
        "",
        "```sh",
        "python -m benchmarks.models --write docs/models.md",
        "```",
        "",
        "| `model_type` | batches | trained | stays on | remark |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(rows[family] for family in sorted(rows))]) + "\n"


def main() -> int:
    """Try all families, or those that are named; exit code 1 if one crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="model types; all where none is given")
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="the page; named families renew their rows",
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    library_logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        like, texts = tiny_checkpoint(root / "like"), tiny_texts(root / "texts.jsonl")
        for family in asked.families or list(FAMILIES):
            started, folder = time.monotonic(), root / family
            outcome = try_family(family, like, texts, folder)
            shutil.rmtree(folder, ignore_errors=True)
            outcomes.append(outcome)
            mark = "!!" if outcome.crashed else "  "
            print(mark, f"{time.monotonic() - started:5.1f} s", *vars(outcome).values(), sep=" · ", flush=True)
    if asked.write:
        rows = rows_of(asked.write) if asked.families else {}
        asked.write.write_text(table(rows | {outcome.family: row_of(outcome) for outcome in outcomes}), "utf-8")
    return int(any(outcome.crashed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
