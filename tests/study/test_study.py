"""Options from flags and TOML: what is read, and how what is wrong is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from finetune_bench.cli.arguments import make_parser
from finetune_bench.errors import UnknownName, UsageError
from finetune_bench.recipe import Recipe
from finetune_bench.study import readers
from finetune_bench.study.options import GROUPS
from finetune_bench.study.sources import OPTIONS, make_study, read_options, read_toml, study_of_file
from finetune_bench.study.study import Study, run_name


def embedded() -> dict[str, Any]:
    return {"tasks": ["one", "two"], "model": "small", "methods": ["vanilla", "hype"], "seeds": 3, "lr": 1e-4}


def study(**flags: Any) -> Study:
    return make_study(flags, embedded)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("5", (1, 2, 3, 4, 5)), ("1", (1,)), ("11,12", (11, 12)), ("11,", (11,)), (2, (1, 2)), ([7], (7,))],
)
def test_seeds(text: Any, seeds: tuple[int, ...]) -> None:
    assert study(seeds=text).seeds == seeds


def test_defaults_are_the_papers_where_a_task_is_named() -> None:
    made = study(tasks="rte", methods="hype")
    assert made.recipe == Recipe()
    assert (Recipe().lr, Recipe().batch_size, Recipe().epochs, Recipe().warmup) == (2e-5, 16, 3, 0.1)
    assert (Recipe().beta1, Recipe().beta2, Recipe().adam_eps) == (0.9, 0.99, 1e-6)
    assert (Recipe().weight_decay, Recipe().clip, Recipe().max_length) == (0.1, 1.0, 128)
    assert made.seeds == (1, 2, 3, 4, 5)
    assert made.models == ("small",)


def test_the_embedded_study_brings_its_own_recipe() -> None:
    made = study()
    assert (made.tasks, made.models, made.seeds, made.recipe.lr) == (("one", "two"), ("small",), (1, 2, 3), 1e-4)
    assert study(methods="hype,rdrop").methods == ("hype", "rdrop")
    assert study(lr="3e-5").recipe.lr == 3e-5


def test_lists_split_outside_brackets_only() -> None:
    assert study(methods="hype(eps=1e-4,noise=normal),rdrop").methods == ("hype(eps=1e-4,noise=normal)", "rdrop")


def test_learning_rates_are_an_axis() -> None:
    assert study(tasks="rte", lr="1e-5,2e-5").lrs == (1e-5, 2e-5)


@pytest.mark.parametrize(("typed", "seconds"), [("90", 90), ("1.5s", 1.5), ("30m", 1800), ("2 h", 7200), (45, 45)])
def test_a_duration_has_units(typed: object, seconds: float) -> None:
    assert study(tasks="rte", timeout=typed).timeout == seconds


@pytest.mark.parametrize(
    ("typed", "size"), [("8GB", 8 * 10**9), ("1.5 GiB", 3 * 2**29), ("500MB", 5 * 10**8), (10**9, 10**9)]
)
def test_an_amount_of_memory_has_units(typed: object, size: int) -> None:
    assert study(tasks="rte", memory=typed).memory == size


@pytest.mark.parametrize(
    ("typed", "minutes"),
    [
        ("240", 240),
        ("30:30", 31),
        ("04:00:00", 240),
        ("100:00:01", 6001),
        ("2-0", 2880),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("1-12:00:00", 2160),
    ],
)
def test_the_time_of_a_job_is_read_as_sbatch_reads_it(typed: str, minutes: int) -> None:
    assert readers.job_minutes(typed) == minutes
    assert dict(study(tasks="rte", executor="slurm", slurm=f"time={typed}").slurm) == {"time": typed}


def test_every_option_is_a_flag() -> None:
    names = (
        "methods tasks model seeds out data-root limit-train epochs steps batch-size lr warmup weight-decay betas "
        "adam-eps clip accumulation gradient-checkpointing max-length precision device workers threads deterministic "
        "batch-layout budget executor gpus-per-worker slurm "
        "timeout memory checkpoint-every save-model no-baseline retry-failed config plugin trust-plugins attribution "
        "search hold-out fair-cost keep-head shard analyses no-sharing optimizer"
    )
    assert {option.flag for option in OPTIONS} == {f"--{name}" for name in names.split()}


def test_no_flag_goes_away() -> None:
    names = (
        "methods tasks model seeds out data-root limit-train epochs steps batch-size lr warmup weight-decay betas "
        "adam-eps clip accumulation gradient-checkpointing max-length precision device workers threads deterministic "
        "batch-layout budget executor gpus-per-worker slurm "
        "timeout memory checkpoint-every save-model no-baseline retry-failed config plugin trust-plugins attribution "
        "search fair-cost"
    )
    assert {f"--{name}" for name in names.split()} <= {option.flag for option in OPTIONS}


@pytest.mark.parametrize(
    ("former", "layout"), [("padded", "padded"), ("packed", "unpadded"), ("trimmed", "unpadded_trimmed")]
)
def test_the_former_words_for_the_batch_layout_are_understood(former: str, layout: str, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(f'arrangement = "{former}"\n', "utf-8")
    assert read_toml(str(tmp_path / "study.toml")) == {"batch_layout": layout}
    parsed = make_parser().parse_args(["run", "--arrangement", former])
    assert study(tasks="rte", batch_layout=parsed.batch_layout).batch_layout == layout
    assert run_name(study(tasks="rte", arrangement=former)) == run_name(study(tasks="rte", batch_layout=layout))
    recipe = Recipe(batch_layout=layout)
    assert recipe.to_dict()["arrangement"] == former
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_the_optimizer_is_part_of_a_recipe_where_it_is_not_the_default(tmp_path: Path) -> None:
    """Files, ids and folders of AdamW stay what they were before there was another."""
    (tmp_path / "study.toml").write_text('optimizer = "lion"\n', "utf-8")
    made = study(tasks="rte", config=str(tmp_path / "study.toml"))
    assert made.recipe == Recipe(optimizer="lion")
    assert study(tasks="rte", config=str(tmp_path / "study.toml"), optimizer="muon").recipe.optimizer == "muon"
    for name in ("adamw", "lion", "muon"):
        recipe = Recipe(optimizer=name)
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        assert recipe.to_dict().get("optimizer", "adamw") == name
    assert "optimizer" not in Recipe().to_dict()
    folders = {run_name(study(tasks="rte", optimizer=name)) for name in ("adamw", "lion", "muon")}
    assert len(folders) == 3
    assert run_name(study(tasks="rte")) in folders
    with pytest.raises(UsageError, match="optimizer"):
        study(tasks="rte", optimizer="adam")


def test_a_task_may_have_an_optimizer_of_its_own() -> None:
    values = {"tasks": ["rte", "mrpc"], "optimizer": "lion", "recipe": {"rte": {"optimizer": "muon"}}}
    made = study_of_file(values, "study.toml", {}, embedded)
    assert {block.tasks: block.recipe.optimizer for block in made.blocks} == {("rte",): "muon", ("mrpc",): "lion"}


def test_a_plugins_arrangement_is_its_batch_layout() -> None:
    from finetune_bench.method import Method

    class Former(Method):
        """Does nothing."""

        name = "former"
        arrangement = "packed"

    assert Former().batch_layout == "unpadded"


def test_every_field_declares_its_option() -> None:
    declared = {option.field for option in OPTIONS}
    assert {field.name for field in dataclasses.fields(Study)} - declared == {"recipe", "blocks", "preset"}
    # The study says these for the recipes of all its cells; --betas is two of them.
    assert {field.name for field in dataclasses.fields(Recipe)} - declared == {"lr", "beta1", "beta2"}
    assert {option.name for option in OPTIONS if not option.field} == {"betas", "config"}
    assert all(option.help and option.group in GROUPS for option in OPTIONS)
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)


def test_the_default_of_a_field_is_told_in_its_help() -> None:
    told = {option.name: option.help for option in OPTIONS}
    assert told["threads"].endswith("(default 1)")
    assert told["adam_eps"].endswith("(1e-6)")
    assert told["lr"].startswith("peak learning rate (default 2e-5)")
    assert told["betas"].endswith("(0.9,0.99)")
    assert not any("{" in line for line in told.values())


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({}, "one-two-05eefd"),
        ({"tasks": "rte"}, "rte-b263af"),
        ({"tasks": "rte,mrpc,cola,stsb,sst2", "model": "bert-base-uncased,roberta-base"}, "rte-mrpc-cola-stsb-84662d"),
        ({"tasks": "reviews.csv(text=body,label=stars)", "lr": "1e-5,3e-5", "limit_train": "100"}, "reviews-25929e"),
        (
            {"tasks": "rte", "data_root": "data", "threads": "2", "search": "5", "batch_layout": "unpadded"},
            "rte-3d0b9e",
        ),
        (
            {
                "tasks": "rte",
                "steps": "50",
                "batch_size": "32",
                "accumulation": "2",
                "warmup": "7",
                "weight_decay": "0",
                "betas": "0.9,0.98",
                "adam_eps": "1e-8",
                "clip": "inf",
                "max_length": "64",
                "precision": "bf16",
                "gradient_checkpointing": True,
                "deterministic": True,
            },
            "rte-05608d",
        ),
        ({"tasks": "rte", "epochs": "5"}, "rte-5589b7"),
        (
            {
                "tasks": "rte",
                "methods": "hype,rdrop",
                "seeds": "11,12",
                "no_baseline": True,
                "attribution": True,
                "fair_cost": True,
                "plugin": "/own.py",
                "out": "here",
                "device": "cuda:1",
                "workers": "3",
                "timeout": "30m",
                "memory": "8GB",
                "trust_plugins": True,
                "budget": "2h",
                "checkpoint_every": "10",
                "save_model": True,
                "retry_failed": True,
            },
            "rte-b263af",
        ),
        ({"tasks": "rte", "executor": "slurm", "slurm": "partition=gpu,time=240"}, "rte-b263af"),
        ({"tasks": "rte", "gpus_per_worker": "0.5"}, "rte-b263af"),
    ],
)
def test_the_run_folders_name_stays_what_it_was(flags: dict[str, Any], name: str) -> None:
    """A run of an earlier version is found again; these are the names that version 0.1.0 gave."""
    assert run_name(study(**flags)) == name


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"seeds": "0"}, "--seeds: expected a number of seeds"),
        ({"seeds": "1,1"}, "given once"),
        ({"seeds": "x"}, "--seeds: expected"),
        ({"timeout": "soon"}, "--timeout: expected a duration above 0, as 90s, 30m or 2h; got 'soon'."),
        ({"timeout": "0"}, "--timeout: expected a duration above 0"),
        ({"executor": "slurm"}, "--executor slurm: say how long a job may run, as --slurm time=04:00:00."),
        ({"executor": "slurm", "slurm": "time=4h"}, "--slurm: expected as time minutes, or H:M:S .*; got '4h'."),
        ({"executor": "slurm", "slurm": "time=1:2:3:4"}, "got '1:2:3:4'"),
        ({"executor": "slurm", "slurm": "time=-5"}, "got '-5'"),
        ({"executor": "slurm", "slurm": "time=0"}, "--slurm: expected as time at least 5 minutes"),
        ({"memory": "8"}, "--memory: expected an amount of memory of at least 100MB, as 8GB or 500MB; got '8'."),
        ({"memory": "8G"}, "--memory: expected an amount of memory"),
        ({"memory": "1MB"}, "--memory: expected an amount of memory"),
        ({"memory": True}, "--memory: expected an amount of memory"),
        ({"memory": "8GB", "executor": "slurm"}, "SLURM takes --slurm mem=8G"),
        ({"memory": "8GB", "executor": "ray"}, "--memory: it is watched on this machine only"),
        ({"lr": "fast"}, "--lr: expected one number or more"),
        ({"lr": "-1"}, "The 'lr' parameter of Recipe must be a float in"),
        ({"lr": "1e-5,-1"}, "The 'lr' parameter"),
        ({"epochs": "0"}, "--epochs: expected a whole number of at least 1"),
        ({"epochs": "1.5"}, "--epochs: expected a whole number"),
        ({"epochs": "1", "steps": "5"}, "--steps and --epochs"),
        ({"betas": "0.9"}, "--betas: expected two numbers"),
        ({"betas": "0.9,1.0"}, "The 'beta2' parameter"),
        ({"precision": "int8"}, "one of fp32, tf32, bf16, fp16"),
        ({"accumulation": "3"}, "must divide"),
        ({"methods": "hype,hype"}, "each name once"),
        ({"methods": ""}, "--methods: expected one name or more"),
        ({"limit_train": "0"}, "--limit-train: expected"),
        ({"warmup": "-0.1"}, "The 'warmup' parameter"),
    ],
)
def test_wrong_values_are_told(flags: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        study(**flags)


def test_toml_is_read_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(
        'methods = ["hype"]\ntasks = ["rte", "mrpc"]\nlr = 3e-5\nbatch-size = 8\nsave_model = true\n', "utf-8"
    )
    made = study(config=str(file), tasks="cola")
    assert (made.methods, made.tasks, made.recipe.lr, made.recipe.batch_size) == (("hype",), ("cola",), 3e-5, 8)
    assert made.save_model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = = 3", "is not valid TOML.*line 1"),
        ("learning_rate = 1.0", "no option in .*study.toml called 'learning_rate'"),
        ("lrs = 1.0", "Did you mean 'lr'"),
        ("epochs = 'many'", "study.toml: key 'epochs': expected a whole number of at least 1; got 'many'"),
        ("epochs = true", "key 'epochs'"),
        ("save_model = 'yes'", "key 'save_model': expected true or false"),
        ("config = 'other.toml'", "no option"),
    ],
)
def test_wrong_toml_is_told(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "study.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(UsageError, match=message):
        read_toml(str(file))


def test_missing_toml_is_told() -> None:
    with pytest.raises(UsageError, match="--config: 'absent.toml' can't be read"):
        read_toml("absent.toml")


def test_unknown_option_is_told() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'seeds'"):
        read_options({"seed": 3})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": (1, 1)}, "'seeds' must be"),
        ({"seeds": (True, 2)}, "'seeds' must be"),
        ({"threads": 0}, "'threads' must be a whole number of at least 1; got 0"),
        ({"workers": 0}, "'workers' must be"),
        ({"data_root": 5}, "'data_root' must be a text"),
        ({"device": 0}, "'device' must be a text"),
        ({"save_model": "no"}, "'save_model' must be true or false; got 'no'"),
    ],
)
def test_the_python_door_checks_as_the_flags_do(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Study(**fields)


def test_the_python_door_reads_as_the_flags_do() -> None:
    made = Study(methods="hype,rdrop", tasks="rte", data_root="data", seeds=[3, 4])  # type: ignore[arg-type]
    assert (made.methods, made.tasks, made.data_root) == (("hype", "rdrop"), ("rte",), Path("data"))
    assert made.seeds == (3, 4)


@pytest.mark.parametrize("value", [True, 5.7, float("inf"), [True, 2]])
def test_odd_seeds_are_told(value: Any) -> None:
    with pytest.raises(UsageError, match="expected a number of seeds"):
        study(seeds=value)


def test_steps_take_the_place_of_epochs() -> None:
    assert (Recipe().epochs, Recipe(steps=5).epochs) == (3, None)
    assert study(steps=7).recipe.steps == 7
    with pytest.raises(UsageError, match="give one of them"):
        Recipe(steps=5, epochs=3)


def test_steps_and_warmup() -> None:
    assert Recipe(epochs=3, batch_size=16).total_steps(100) == 21
    assert Recipe(steps=50).total_steps(100) == 50
    assert Recipe(warmup=0.1).warmup_steps(50) == 5
    assert Recipe(warmup=7).warmup_steps(50) == 7
