"""The Report contract: from rows to files.

A report reads rows and nothing else; it never trains, and never imports torch. Built-in formats and a stranger's are
found in the same way: through the entry-point group `finetune_bench.reports`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from finetune_bench.store import Store


class Report(ABC):
    """One format of a report.

    Class attributes:
        name: what the user types after --format.
    """

    name: ClassVar[str]

    @abstractmethod
    def write(self, store: Store, folder: Path) -> list[Path]:
        """Write the report of a store's rows into `folder` (which exists).

        Returns:
            The files written; the first is the one to open.
        """
