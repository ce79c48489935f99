"""Every random stream has a name. Its seed is a hash of the axes that it may depend on, and of nothing else.

init(seed, task, model)   the fresh head's weights: the same for every method of a comparison
order(seed, task)         the order of the examples: likewise
dropout(seed)             the global stream while training: dropout masks
method(seed, name, …)     one stream per method and purpose, so that stacking a method shifts nobody else's draws
"""

from __future__ import annotations

import hashlib


def derive(seed: int, stream: str, *axes: str) -> int:
    """Return the seed of a named stream, in [0, 2**63).

    Args:
        seed: the cell's seed.
        stream: the stream's name: "init", "order", "dropout" or "method".
        axes: everything else that the stream depends on.
    """
    text = "\x1f".join([str(seed), stream, *axes])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
