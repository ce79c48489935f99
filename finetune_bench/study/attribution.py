"""An attribution divides a method's gain among its effects: runs turn them on one after the other."""

from __future__ import annotations

from finetune_bench import registry
from finetune_bench.method.stack import Stack
from finetune_bench.model.dropout import Dropout

# The name of the effect that a method has by asking for less dropout.
DROPOUT = "dropout removal"


def effect_chain(stack: Stack) -> list[tuple[str, str]]:
    """Return the effects and runs from vanilla to a method, in the order in which they are turned on.

    Args:
        stack: a stack of one method; others have no chain.

    Returns:
        Pairs of an effect's name and the stack, with every parameter spelt out, that has it and those before; the
        first is compared with vanilla, the last run is the method's own. Empty for vanilla and for stacks of several.
    """
    if len(stack.methods) != 1 or stack.methods[0].name == registry.BASELINE:
        return []
    (method,) = stack.methods
    vanilla = registry.method_class(registry.BASELINE)
    removed = {DROPOUT: vanilla(dropout=method.dropout)} if method.dropout is not Dropout.KEEP else {}
    twins = {**removed, **method.effects()}
    return [(effect, registry.describe(Stack([twin]), full=True)) for effect, twin in twins.items()]


def label_of(full: str) -> str:
    """Return the name by which reports call a stack that is spelt out."""
    return registry.describe(registry.make_stack(full))
