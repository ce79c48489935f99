"""What a method's gain is made of: runs that turn its effects on one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_bench import registry

if TYPE_CHECKING:
    from finetune_bench.method.stack import Stack

DROPOUT = "dropout removal"


def effect_chain(stack: Stack) -> list[tuple[str, str]]:
    """Effects and runs from vanilla to a method, in the order in which they are turned on.

    Args:
        stack: of one method; others have no chain.

    Returns:
        Pairs of an effect's name and the stack, with every parameter spelt out, that has it and those before; the
        first is compared with vanilla, the last run is the method's own. Empty for vanilla and for stacks of several.
    """
    from finetune_bench.method.asking import ask
    from finetune_bench.method.stack import Stack
    from finetune_bench.model.dropout import Dropout

    if len(stack.methods) != 1 or stack.methods[0].name == registry.BASELINE:
        return []
    (method,) = stack.methods
    vanilla = registry.method_class(registry.BASELINE)
    removed = {DROPOUT: vanilla(dropout=method.dropout)} if method.dropout is not Dropout.KEEP else {}
    twins = {**removed, **ask(method, "effects")}
    return [(effect, registry.describe(Stack([twin]), full=True)) for effect, twin in twins.items()]


def label_of(full: str) -> str:
    """How reports call a stack that is spelt out."""
    return registry.describe(registry.make_stack(full))
