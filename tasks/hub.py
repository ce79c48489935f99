"""Data sets in the hub's layout are read from the hub, its cache or a folder, checked, and turned into splits.

A row whose label is not given (-1 or none, by the hub's convention) is left out, and a note counts those. Everything
else that is not as expected ends with a DataError, before any compute: a silently different order of the labels, say,
would be a wrong result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune_bench.errors import DataError
from finetune_bench.model.hub import is_reachable
from finetune_bench.printable import brief, listed
from finetune_bench.task import Provenance, Split, Task, TaskData

NOT_GIVEN = -1


def address(path: str) -> str:
    """Return where the card of a data set of the hub stands."""
    return f"https://huggingface.co/datasets/{path}"


@dataclass(frozen=True)
class HubTask(Task):
    """A HubTask is a task whose examples come from a data set of the hub.

    Attributes:
        path: the data set's name on the hub, "owner/name".
        config: the data set's configuration.
        columns: the columns of the texts: one, or two for a pair task.
        label: the column of the labels.
        rows: the published number of labelled rows by split: the training split, then those to evaluate on.
    """

    path: str = ""
    config: str = "default"
    columns: tuple[str, ...] = ("sentence",)
    rows: Mapping[str, int] = field(default_factory=dict, hash=False)
    label: str = "label"

    def provenance(self) -> Provenance:
        """Return the data set's name on the hub, with the address of its card, and its published sizes."""
        return Provenance(f"{address(self.path)}, config {self.config}, on the hub", self.rows)

    def load(self, data_root: Path | None) -> TaskData:
        """Read the training and the evaluation splits.

        Args:
            data_root: a folder in the hub's layout; None for the hub, or its cache when the hub is out of reach.

        Raises:
            DataError: missing or malformed; says what was looked for, where, and how to get it.
        """
        with silent():
            if data_root is None:
                return self._check(self._from_hub(), "on the hub or in its cache")
            # A cache of its own for every reading: datasets goes by the time stamps of files, so that a file which was
            # replaced by another of the same age would be answered from the old cache.
            with TemporaryDirectory(prefix="finetune-bench-", ignore_cleanup_errors=True) as cache:
                return self._check(self._from_folder(Path(data_root), cache), f"in '{Path(data_root) / self.path}'")

    def _from_hub(self) -> Mapping[str, Any]:
        return load_from_hub(self.path, self.config, f"laid out as {self._layout('FOLDER')}")

    def _from_folder(self, data_root: Path, cache: str) -> Mapping[str, Any]:
        # Here and below: importing datasets takes seconds, and a task is asked for its name and labels without it.
        import datasets

        if not data_root.is_dir():
            raise DataError(f"--data-root: expected a folder, but there is none at '{data_root}'.")
        folder = data_root / self.path
        wanted = (
            f"The data set {self.path}, config {self.config}, was looked for in the folder '{folder}' of --data-root, "
        )
        if not folder.is_dir():
            raise DataError(
                f"{wanted}which does not exist; create it, with files laid out as {self._layout(data_root)}."
            )
        try:
            # Only a data card (README.md) can name the configurations; without one they are the folders beside it.
            files: Any = None
            if (folder / "README.md").is_file():
                try:
                    if self.config in datasets.get_dataset_config_names(str(folder)):
                        builder = datasets.load_dataset_builder(str(folder), self.config, cache_dir=cache)
                        if not any((builder.config.data_files or {}).values()):
                            raise datasets.exceptions.DataFilesNotFoundError
                        named: Mapping[str, Any] = datasets.load_dataset(str(folder), self.config, cache_dir=cache)
                        return named
                except datasets.exceptions.DataFilesNotFoundError:
                    # The card of a copy of some configurations names all, and the library wants files of the first.
                    files = self._files_on_card(folder / "README.md")
            files = files or self._files(folder / self.config)
            if not files:
                raise DataError(
                    f"{wanted}where neither a README.md names that config nor a folder '{self.config}' holds its "
                    f"splits; lay the files out as {self._layout(data_root)}."
                )
            loaded: Mapping[str, Any] = datasets.load_dataset(str(folder), data_files=files, cache_dir=cache)
        except DataError:
            raise
        except datasets.exceptions.DataFilesNotFoundError as error:
            raise DataError(
                f"{wanted}which holds none of its files; lay them out as its README.md says, or as "
                f"{self._layout(data_root)}."
            ) from error
        # Here and below: datasets, pyarrow, the hub's client and its HTTP library all raise errors of their own.
        except Exception as error:
            raise DataError(f"{wanted}but could not be loaded from there: {reason_of(error)}.") from error
        return loaded

    def _files_on_card(self, card: Path) -> Any:
        """Return the files that a data card names for the configuration, as it writes them; None if it names none."""
        from huggingface_hub import DatasetCard

        configs = DatasetCard.load(card).data.to_dict().get("configs") or ()
        return next((config.get("data_files") for config in configs if config.get("config_name") == self.config), None)

    def _files(self, folder: Path) -> dict[str, list[str]]:
        # Named split by split: left to itself, datasets would read validation_matched and validation_mismatched as one.
        files_of = {split: sorted([*folder.glob(f"{split}-*"), *folder.glob(f"{split}.*")]) for split in self.rows}
        return {split: [str(file) for file in files] for split, files in files_of.items() if files}

    def _layout(self, root: Path | str) -> str:
        return ", ".join(f"'{Path(root) / self.path / self.config / split}-*.parquet'" for split in self.rows)

    def _check(self, loaded: Mapping[str, Any], where: str) -> TaskData:
        notes: list[str] = []
        splits: dict[str, Split] = {}
        for name, published in self.rows.items():
            source = f"{self.path}, config {self.config}, split {name}"
            if name not in loaded:
                raise DataError(
                    f"The data set {source}, was not found {where}; its splits there are {listed(loaded) or 'none'}."
                )
            splits[name], missing = self._check_split(loaded[name], published, source)
            if missing:
                notes.append(f"{missing} rows of the {name} split carry no label and were left out.")
            if splits[name].is_subset:
                notes.append(
                    f"The {name} split holds {len(splits[name])} rows; {published} were published, so scores on it "
                    "can't be compared with published ones."
                    if name != next(iter(self.rows))
                    else f"The {name} split holds {len(splits[name])} rows; {published} were published."
                )
        train, *evaluation = splits
        return TaskData(splits[train], {name: splits[name] for name in evaluation}, tuple(notes))

    def _check_split(self, rows: Any, published: int, source: str) -> tuple[Split, int]:
        expected = [*self.columns, self.label]
        if missing := [column for column in expected if column not in rows.column_names]:
            raise DataError(
                f"The data set {source}, has no column {', '.join(missing)}: expected {', '.join(expected)}; "
                f"found {listed(rows.column_names)}."
            )
        values = rows.select_columns(expected)[:]
        labels = self._labels(values[self.label], getattr(rows.features[self.label], "names", None), source)
        given = [i for i, label in enumerate(labels) if label is not None]
        if not given:
            raise DataError(f"The data set {source}, has no row with a label among its {len(labels)} rows.")
        texts: list[list[str]] = []
        for column in self.columns:
            wrong = next((i for i in given if not isinstance(values[column][i], str)), None)
            if wrong is not None:
                raise DataError(f"The data set {source}, row {wrong + 1}: '{column}' is not a text.")
            texts.append([values[column][i] for i in given])
        kept: Any = [labels[i] for i in given]
        split = Split(texts[0], texts[1] if len(texts) > 1 else None, kept, published)
        return split, len(labels) - len(given)

    def _labels(self, values: Sequence[Any], names: Sequence[str] | None, source: str) -> Sequence[int | float | None]:
        if names is not None and tuple(names) != self.labels:
            raise DataError(
                f"The data set {source}, names its labels {listed(names)}, in this order; "
                f"expected {', '.join(self.labels) or 'numbers'}."
            )
        ids = {label: i for i, label in enumerate(self.labels)}
        labels: list[int | float | None] = []
        for row, value in enumerate(values, start=1):
            if value is None or value == NOT_GIVEN:
                labels.append(None)
            elif self.kind == "regression" and isinstance(value, int | float) and math.isfinite(value):
                labels.append(float(value))
            elif self.kind == "classification" and isinstance(value, int) and 0 <= value < len(self.labels):
                labels.append(int(value))
            elif self.kind == "classification" and value in ids:
                labels.append(ids[value])
            else:
                expected = "a number" if self.kind == "regression" else f"one of {listed(self.labels)}"
                got = brief(value, write=repr)
                raise DataError(f"The data set {source}, row {row}: the label must be {expected}; got {got}.")
        return labels


def load_from_hub(path: str, config: str | None, layout: str) -> Mapping[str, Any]:
    """Load a data set from the hub, or from its cache when the hub is out of reach; return its splits by name.

    Args:
        path: the data set's name on the hub.
        config: the data set's configuration; None for the only one, or the one that it calls its default.
        layout: how the files of a folder would be laid out, for the message.

    Raises:
        DataError: it can't be had; says why, and what to do.
    """
    import datasets

    was_offline = datasets.config.HF_HUB_OFFLINE
    reachable = not was_offline and is_reachable()
    # datasets retries for half a minute before it looks into its cache; told to be offline, it looks there at once.
    datasets.config.HF_HUB_OFFLINE = was_offline or not reachable
    try:
        loaded: Mapping[str, Any] = datasets.load_dataset(path, config)
    except Exception as error:
        _, several, names = str(error).partition("available configs:")
        if several:
            raise DataError(
                f"The data set {path} has several configurations; choose one with config=NAME:{names.splitlines()[0]}."
            ) from error
        if reachable:
            reason = f"could not be loaded from the hub ({reason_of(error)})"
        else:
            cache = datasets.config.HF_DATASETS_CACHE
            reason = f"was not found: the hub can't be reached, and the hub's cache at '{cache}' does not hold it"
        raise DataError(
            f"The data set {path}{f', config {config}' if config else ''}, {reason}; connect to the network once, or "
            f"give --data-root FOLDER with its files {layout}."
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
    return loaded


def reason_of(error: BaseException) -> str:
    """Return the first line of what went wrong; datasets hides it behind a general sentence."""
    cause = error.__cause__ or error
    text = brief(str(cause).strip().partition("\n")[0].rstrip("."))
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__


@contextmanager
def silent() -> Iterator[None]:
    """Show no progress bars inside, neither those of datasets nor those of the hub's client."""
    import datasets
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    datasets_was_silent, hub_was_silent = datasets.are_progress_bars_disabled(), are_progress_bars_disabled()
    datasets.disable_progress_bars()
    disable_progress_bars()
    try:
        yield
    finally:
        if not datasets_was_silent:
            datasets.enable_progress_bars()
        if not hub_was_silent:
            enable_progress_bars()
