"""Make the document of `plan` from a plan and what its runs will take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_bench.runner.forecast import Forecast
    from finetune_bench.runner.plan import Plan


def plan_values(plan: Plan, expected: Forecast | None) -> dict[str, Any]:
    """Return a `PlanDocument`'s own keys.

    Args:
        plan: the plan.
        expected: what its runs will take; None where none is left.
    """
    seconds: dict[str, list[float]] = {}
    timed_with: dict[str, str | None] = {}
    if expected is not None:
        for cell in plan.todo:
            timed_with[cell.label] = expected.timed_with.get(cell.method)
            seconds.setdefault(cell.label, []).append(expected.seconds[cell.id])
    values = {
        "folder": str(plan.store.root),
        "runs": len(plan.cells),
        "to_run": len(plan.todo),
        "trainings": len(plan.trainings),
        "cached": len(plan.cached),
        "skipped": len(plan.skipped),
        "failed_before": len(plan.failed),
        "notes": plan.notes,
        "methods": [
            {
                "method": label,
                "runs": len(each),
                "seconds_each": sum(each) / len(each),
                "seconds": sum(each),
                "timed_with": timed_with[label],
            }
            for label, each in seconds.items()
        ],
        "device": plan.devices[0] if expected is not None else None,
    }
    names = ("workers", "cpu_seconds", "wall_seconds", "memory_bytes", "disk_bytes")
    return values | {name: getattr(expected, name, None) for name in names}
