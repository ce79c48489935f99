"""A Report makes files from rows; here is the contract that it keeps.

A report reads rows and nothing else; it never trains, and never imports torch. Built-in formats and a stranger's are
found in the same way: through the entry-point group `finetune_bench.reports`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # the command line reads this module before it knows whether a store is needed
    from finetune_bench.store.store import Store


@dataclass(frozen=True)
class Options:
    """A reader may ask this of a report.

    Attributes:
        baseline: the label of the method that differences are to; None for vanilla.
        margin: the points within which methods count as equal for practical purposes; None for no such test.
        bootstrap: whether to resample seeds and examples together, which reads every prediction.
        all_cells: whether to cover every cell of the folder.
        cells: ids of the cells to cover; None for those of the folder's last command.
    """

    baseline: str | None = None
    margin: float | None = None
    bootstrap: bool = False
    all_cells: bool = False
    cells: tuple[str, ...] | None = None


DEFAULT = Options()


class Report(ABC):
    """A report writes rows in one format.

    Class attributes:
        name: the text that the user types after --format.
    """

    name: ClassVar[str]

    @abstractmethod
    def write(self, store: Store, folder: Path, options: Options = DEFAULT) -> list[Path]:
        """Write the report of a store's rows into `folder` (which exists); equal rows make equal files.

        Returns:
            The files that were written; the first is the one to open.
        """
