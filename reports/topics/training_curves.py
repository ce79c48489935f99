"""Draw the training loss of each method by step, to see how it falls."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from finetune_bench.reports.plots.style import (
    left_out_text,
    legend,
    legend_handle,
    method_style,
    panel_title,
    panels_across,
    shown_methods,
    small_multiples,
    tell,
)
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.topics.topic import Drawing, Topic, TopicBlock
from finetune_bench.store.row import Status


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    alt = "Training loss of the task by step: mean over seeds, smoothed"
    return [Drawing("curves", alt, partial(draw_curves, data, section))]


def draw_curves(data: Data, section: Section) -> Figure | None:
    """Draw the task's training loss by step, without what methods add to it: mean over seeds, a panel per task."""
    methods = shown_methods(section)
    curves = {
        (task, method): losses
        for task in section.tasks
        for method in methods
        if (losses := list(_losses(data, section, method, task)))
    }
    tasks = [task for task in section.tasks if any(task == key[0] for key in curves)]
    if not tasks:
        return None
    across = panels_across(len(tasks), 2 if len(tasks) == 4 else 3)
    figure, panels = small_multiples(len(tasks), across, 4.3, 3.0)
    for axes, task in zip(panels, tasks, strict=True):
        # In reverse, so that the baseline is drawn last, on top of the others.
        for index, method in enumerate(reversed(methods)):
            if (task, method) not in curves:
                continue
            colour, _, style = method_style(section, method)
            losses = curves[task, method]
            steps = min(map(len, losses))
            window = max(1, steps // 20)
            if len(methods) <= 6:
                for loss in losses:
                    smoothed = _smooth(loss, window)
                    (line,) = axes.plot(_centres(len(loss), window), smoothed, lw=0.6, color=colour, alpha=0.25)
                    tell(line, [method])
            mean = _smooth(np.mean([loss[:steps] for loss in losses], axis=0), window)
            # What is drawn first is broader, so that it is seen on both sides of a line that lies on it.
            width = 2.8 - 1.6 * index / max(1, len(methods) - 1)
            (line,) = axes.plot(_centres(steps, window), mean, style, lw=width, color=colour)
            tell(line, [method], [f"{method} on {task}: mean over {len(losses)} seeds"])
        panel_title(axes, task)
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
    for axes in panels[::across]:
        axes.set_ylabel("training loss of the task")
    handles = [legend_handle(section, method, line=True) for method in methods]
    legend(figure, handles, left_out_text(section))
    return figure


def _losses(data: Data, section: Section, method: str, task: str) -> Iterator[np.ndarray]:
    """Yield the (steps,) losses of every finished run."""
    for row in section.rows(method, task, Status.DONE):
        trace = data.trace(row)
        loss = np.asarray(trace.get("task_loss", trace.get("loss", ())), dtype=np.float64)
        if loss.ndim == 1 and len(loss):
            yield loss


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    return np.convolve(values, np.full(window, 1 / window), mode="valid")


def _centres(steps: int, window: int) -> np.ndarray:
    return np.arange(steps - window + 1) + (window + 1) / 2


TOPIC = Topic(title="Training", blocks=_blocks)
