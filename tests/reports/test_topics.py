"""Topics: every one is told, and to add one takes a file and an entry."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from finetune_bench.reports import topics
from finetune_bench.reports.csv import Csv
from finetune_bench.reports.document import table
from finetune_bench.reports.html import Html
from finetune_bench.reports.markdown import Markdown
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.section import section_blocks
from finetune_bench.reports.topics import TOPICS
from finetune_bench.reports.topics.analysed import written
from finetune_bench.reports.topics.topic import Topic, TopicBlock
from finetune_bench.stats.estimates import t_interval
from tests.synthetic_store import make_store


def test_every_file_with_a_topic_is_in_the_tuple() -> None:
    files = sorted(Path(str(topics.__file__)).parent.glob("*.py"))
    modules = [importlib.import_module(f"{topics.__name__}.{file.stem}") for file in files if file.stem != "__init__"]
    told = [module.TOPIC for module in modules if hasattr(module, "TOPIC")]
    assert {id(topic) for topic in told} == {id(topic) for topic in TOPICS}
    assert len(told) == len(TOPICS) == len({topic.title for topic in TOPICS})


@pytest.mark.slow
def test_a_new_topic_is_told_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def blocks(data: Data, section: Section) -> list[TopicBlock]:
        return [table("weather", ("method", "sky"), [["hype", "cloudy"]])]

    monkeypatch.setattr("finetune_bench.reports.section.TOPICS", (*TOPICS, Topic(title="Weather", blocks=blocks)))
    store = make_store(tmp_path / "store")
    (markdown, *_) = Markdown().write(store, tmp_path)
    (page,) = Html().write(store, tmp_path)
    text = markdown.read_text("utf-8")
    assert "## Weather\n\n| method | sky |\n" in text
    assert "cloudy" in page.read_text("utf-8")


def test_a_topic_without_content_has_no_heading(tmp_path: Path) -> None:
    data = load(make_store(tmp_path, methods=("vanilla",), tasks=("rte",), seeds=1))
    titles = [block.text for block in section_blocks(data, data.sections[0], 2, {}) if hasattr(block, "level")]
    assert titles == ["Scores", "Differences to the baseline", "Cost"]


def test_every_frame_has_its_file(tmp_path: Path) -> None:
    paths = Csv().write(make_store(tmp_path / "store"), tmp_path)
    frames = [topic.frame for topic in TOPICS if topic.frame is not None]
    assert [path.name for path in paths] == [*(f"{frame.file}.csv" for frame in frames), "rows.csv", "rows.parquet"]


def test_a_count_is_written_in_full() -> None:
    """1,304 examples are neither a power of ten nor rounded to three digits."""
    assert written(t_interval([1304.0])) == "1,304"
    assert written(t_interval([0.12345])) == "0.123"
    assert written(t_interval([-2500.4]), sign=True) == "−2,500"
