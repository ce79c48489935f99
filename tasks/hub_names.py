"""Any data set of the hub becomes a task: `hub:ag_news`, `hub:SetFit/trec(text=text,label=label_coarse)`.

It is read from the hub, from its cache, or from `--data-root FOLDER`. There its files lie in `FOLDER/OWNER/NAME`, with
a data card, or as `CONFIG/SPLIT-*.parquet`, `data/SPLIT-*.parquet` or `SPLIT-*.parquet`. Options:

- `config` is its configuration; needed where there are several and none is the default.
- `text`, `text_pair`, `label` name the columns (`text` and `label` by default, no pair).
- `train`, `validation`, `test` name its splits. By default the training split is `train`; scored is `validation` (or
  `dev`, `valid`, `val`) where there is one, else `test`, and a note says so; without either, 20 % of the training rows
  are held out by a hash of their texts. `test=NAME` is scored beside `validation`.
- `kind`, `metric` and `missing` are those of a user's own file (text_files.py).

The classes are the label column's ClassLabel names in their order; else its values. By the hub's convention a row with
the label -1 of a ClassLabel column, or with none, has no label: such rows are left out, and a note counts them. For
everything else, rows.py says what becomes of the rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune_bench.errors import DataError, UnknownName
from finetune_bench.printable import brief, listed
from finetune_bench.spec import quote
from finetune_bench.task import Provenance, Task, TaskData
from finetune_bench.tasks.hub import address, load_from_hub, reason_of, silent
from finetune_bench.tasks.rows import Choices, Part, check_columns, check_options, make_data, row_of

OPTIONS = ("config", "text", "text_pair", "label", "train", "validation", "test", "kind", "metric", "missing")
_VALIDATION = ("validation", "dev", "valid", "val")
_LONGEST_NAME = 200  # characters; the hub takes fewer
_FILE = re.compile(r"(.+?)(?:-\d+-of-\d+)?\.(?:parquet|csv|json|jsonl)")


# The hub's files of a data set say nothing of it.
NOT_STATED = "not stated; see the data set's page"


@dataclass(frozen=True)
class NamedHubTask(Task):
    """A NamedHubTask is a data set that the user names; `hub_task` makes it.

    Its classes are known once it has been read, which `load` does first of all.

    Attributes:
        path: the data set's name on the hub.
        options: the options as typed.
    """

    path: str = ""
    options: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def outputs(self) -> int:
        """The width of the model's head is the number of classes, or 1 for regression."""
        if self.kind == "classification" and not self.labels:
            self.load(None)
        return super().outputs

    def provenance(self) -> Provenance:
        """Return the data set's name on the hub, with the address of its card."""
        return Provenance(f"{address(self.path)}, on the hub")

    def load(self, data_root: Path | None) -> TaskData:
        """Read the splits, and learn the names of the classes from them.

        Args:
            data_root: a folder in the hub's layout; None for the hub, or its cache when the hub is out of reach.

        Raises:
            DataError: missing or malformed; says what was looked for, where, and how to get it.
        """
        with silent():
            if data_root is None:
                return self._take(load_from_hub(self.path, self.options.get("config"), self._layout("FOLDER")))
            # A cache of its own, as for every reading of a folder: datasets would go by the files' time stamps.
            with TemporaryDirectory(prefix="finetune-bench-", ignore_cleanup_errors=True) as cache:
                return self._take(self._from_folder(Path(data_root), cache))

    def _layout(self, root: Path | str) -> str:
        config = self.options.get("config", "CONFIG")
        return f"laid out as '{Path(root) / self.path / config / 'SPLIT'}-*.parquet'"

    def _from_folder(self, data_root: Path, cache: str) -> Mapping[str, Any]:
        import datasets

        folder, config = data_root / self.path, self.options.get("config")
        if not folder.is_dir():
            raise DataError(
                f"The data set {self.path} was looked for in the folder '{folder}' of --data-root, which does not "
                f"exist; create it, with files {self._layout(data_root)}."
            )
        try:
            card = (folder / "README.md").is_file()
            named = datasets.get_dataset_config_names(str(folder)) if card else ["default"]
            if named != ["default"] and (config or len(named) == 1 or "default" in named):
                if config and config not in named:
                    raise DataError(f"'{self.name}': {UnknownName('config', config, named)}")
                loaded: Mapping[str, Any] = datasets.load_dataset(str(folder), config or None, cache_dir=cache)
            elif named != ["default"]:
                raise DataError(self._several(named))
            else:
                loaded = datasets.load_dataset(str(folder), data_files=self._files(folder, data_root), cache_dir=cache)
        except DataError:
            raise
        except Exception as error:  # whichever of datasets and pyarrow raises
            raise DataError(
                f"The data set {self.path} could not be loaded from '{folder}': {reason_of(error)}."
            ) from error
        return loaded

    def _several(self, names: Sequence[str]) -> str:
        return (
            f"The data set {self.path} has the configurations {listed(sorted(names))}; "
            f"choose one: hub:{self.path}(config=NAME)."
        )

    def _files(self, folder: Path, data_root: Path) -> dict[str, list[str]]:
        """Return the data files by split, each named: left to itself, datasets would mix splits of similar names."""
        config = self.options.get("config")
        folders = [folder / config] if config else [folder, folder / "default", folder / "data"]
        splits: dict[str, list[str]] = {}
        for candidate in folders:
            for file in sorted(candidate.iterdir()) if candidate.is_dir() and not splits else ():
                if file.is_file() and (match := _FILE.fullmatch(file.name)):
                    splits.setdefault(match[1], []).append(str(file))
            if splits:
                return splits
        configs = [
            item.name for item in sorted(folder.iterdir()) if item.is_dir() and any(map(_is_data, item.iterdir()))
        ]
        if config is None and len(configs) == 1:
            return replace(self, options={**self.options, "config": configs[0]})._files(folder, data_root)
        if config is None and configs:
            raise DataError(self._several(configs))
        known = f"; its configurations there are {listed(configs)}" if configs else ""
        raise DataError(
            f"The data set {self.path} has no data files in '{folders[0]}'{known}; expected them "
            f"{self._layout(data_root)}."
        )

    def _take(self, loaded: Mapping[str, Any]) -> TaskData:
        choices = Choices.of(self.name, self.options)
        splits, notes = self._splits(loaded)
        columns = _columns(self.options)
        names: dict[str, None] = {}
        parts: dict[str, Part] = {}
        for name, split in splits.items():
            part, classes = self._part(f"{self.path}, split {split}", loaded[split], columns)
            parts[name] = replace(part, notes=tuple(notes) + part.notes if name == "train" else part.notes)
            names |= dict.fromkeys(classes)
        labels, _, data = make_data(self.name, parts, replace(choices, order=tuple(names)))
        object.__setattr__(self, "labels", labels)
        return data

    def _splits(self, loaded: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
        """Return the data set's splits to train on and to score, and what to say of the choice."""
        notes = []
        chosen = {"train": self.options.get("train", "train")}
        chosen |= {name: self.options[name] for name in ("validation", "test") if name in self.options}
        if "validation" not in chosen:
            usual = next((name for name in _VALIDATION if name in loaded), None)
            if usual is None and "test" in loaded and "test" not in chosen:
                usual = "test"
                notes.append("It has no validation split, so its test split is scored in that place.")
            if usual is not None:
                chosen["validation"] = usual
        for option, split in chosen.items():
            if split not in loaded:
                raise DataError(
                    f"'{self.name}': {UnknownName('split', split, loaded)} Its splits are {listed(loaded)}; choose "
                    f"one with {option}=SPLIT."
                )
        return chosen, notes

    def _part(self, source: str, rows: Any, columns: tuple[str, str | None, str]) -> tuple[Part, Sequence[str]]:
        for option, column in zip(("text", "text_pair", "label"), columns, strict=True):
            if column is not None and column not in rows.column_names:
                raise DataError(
                    f"'{source}': {UnknownName('column', column, rows.column_names)} Its columns are "
                    f"{listed(rows.column_names)}; choose one with {option}=COLUMN."
                )
        names: Sequence[str] = getattr(rows.features[columns[2]], "names", None) or ()
        values = rows.select_columns([column for column in columns if column is not None])[:]
        texts, labels = values[columns[0]], values[columns[2]]
        pairs = values[columns[1]] if columns[1] is not None else [None] * len(labels)
        given = [i for i, label in enumerate(labels) if label is not None and not (names and label == -1)]
        if names and (beyond := next((i for i in given if not 0 <= labels[i] < len(names)), None)) is not None:
            raise DataError(
                f"'{source}', row {beyond + 1}: the class id must be from 0 to {len(names) - 1}; got {labels[beyond]}."
            )
        rows_with_label = [
            row_of(source, f"row {i + 1}", (texts[i], pairs[i], names[labels[i]] if names else labels[i]), columns)
            for i in given
        ]
        without = len(labels) - len(given)
        if not rows_with_label:
            raise DataError(f"'{source}' has no row with a label among its {len(labels)} rows.")
        notes = (f"{without} rows of {source} carry no label and were left out.",) if without else ()
        return Part(source, rows_with_label, columns, notes), names


def _is_data(file: Path) -> bool:
    return file.is_file() and _FILE.fullmatch(file.name) is not None


def _columns(options: Mapping[str, str]) -> tuple[str, str | None, str]:
    return options.get("text", "text"), options.get("text_pair"), options.get("label", "label")


def hub_task(path: str, options: Mapping[str, str]) -> Task:
    """Make the task of a data set on the hub; nothing is read before its `load`.

    Args:
        path: the data set's name, "name" or "owner/name".
        options: those of the module's docstring.

    Raises:
        DataError: no such option, or a name that is none.
    """
    check_options(f"hub:{path}", options, OPTIONS)
    if len(path) > _LONGEST_NAME or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path, re.ASCII):
        raise DataError(
            f"'hub:{brief(path)}': expected the name of a data set on the hub, as hub:ag_news or hub:SetFit/trec."
        )
    check_columns(f"hub:{path}", _columns(options))
    return _known(path, tuple((option, options[option]) for option in OPTIONS if option in options))


@lru_cache(maxsize=64)
def _known(path: str, options: tuple[tuple[str, str], ...]) -> Task:
    # One object for each spelling in a process, so that who asks for the task anew knows the classes that were read.
    given = ",".join(f"{option}={quote(value)}" for option, value in options)
    name = f"hub:{path}" + (f"({given})" if given else "")
    choices = Choices.of(name, dict(options))
    usual = "accuracy" if choices.kind == "classification" else "pearson_spearman"
    metrics = (choices.metric or usual,)
    return NamedHubTask(name, choices.kind, (), metrics, path, dict(options), licence=NOT_STATED)
