"""Tell how each method's runs train: the loss by step, the gradient's norm, and how often it is clipped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from finetune_bench.reports.document import Entry, bullets, code, table
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
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.topics.topic import Drawing, Frame, Topic, TopicBlock
from finetune_bench.store.row import Status


@dataclass(frozen=True)
class Gradient:
    """A Gradient says how large a method's gradients were on a task.

    Attributes:
        section: Title of the section.
        method: Label of the method.
        task: The task.
        runs: Runs that ended well and have the figures below, which are medians over them.
        norm: The gradient's norm before clipping, a run's median over its steps.
        clipped_share: Share of a run's steps whose gradient was clipped.
    """

    section: str
    method: str
    task: str
    runs: int
    norm: float
    clipped_share: float


@cached
def gradients(section: Section) -> list[Gradient]:
    """Return the gradients of every method on every task; runs of earlier versions have none recorded."""
    result = []
    for method in section.methods:
        for task in section.tasks:
            facts = [row.get("training") or {} for row in section.rows(method, task, Status.DONE)]
            pairs = [(f.get("grad_norm"), f.get("clipped_share")) for f in facts]
            known = [(norm, share) for norm, share in pairs if norm is not None and share is not None]
            if known:
                norm, share = np.median(known, axis=0)
                result.append(Gradient(section.title, method, task, len(known), float(norm), float(share)))
    return result


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    alt = "Training loss of the task by step: mean over seeds, smoothed"
    return [Drawing("curves", alt, partial(draw_curves, data, section)), *_gradient_blocks(section)]


def _gradient_blocks(section: Section) -> list[TopicBlock]:
    by_place = {(gradient.method, gradient.task): gradient for gradient in gradients(section)}
    if not by_place:
        return []
    tasks = [task for task in section.tasks if any(task == key[1] for key in by_place)]
    rows: list[list[str | Entry]] = [
        [code(method), *(_gradient_entry(section, by_place.get((method, task)), method, task) for task in tasks)]
        for method in section.methods
        if any(method == key[0] for key in by_place)
    ]
    note = (
        "The gradient's norm before clipping, and behind it the share of the steps in which it was clipped: a run's "
        "median over its steps, medians over runs. A method that scales the loss moves it and, where clipping is rare, "
        "hardly changes the training: AdamW divides the scale out again."
    )
    return [table("gradients", ("method", *tasks), rows, in_paper=False), *bullets([note])]


def _gradient_entry(section: Section, gradient: Gradient | None, method: str, task: str) -> str | Entry:
    if gradient is None:
        return "—"
    runs = tuple(row["id"] for row in section.rows(method, task, Status.DONE))
    return Entry(f"{gradient.norm:.2g} ({gradient.clipped_share:.0%} clipped)", gradient.norm, runs)


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


TOPIC = Topic(
    title="Training",
    blocks=_blocks,
    frame=Frame(file="gradients", record=Gradient, records=lambda data, section: gradients(section)),
)
