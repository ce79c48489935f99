"""The hub is asked once for a sign of life; where it gives none, its clients look into their caches at once.

Left to themselves they try again and again, for half a minute a file, and write a line each time.
"""

from __future__ import annotations

import logging
from functools import cache

import huggingface_hub
from huggingface_hub import constants

PROBE_SECONDS = 5.0

# Holds an entry while this file, and not the user, has told the client to be offline.
_told: list[bool] = []


def ask(seconds: float) -> None:
    """Ask the hub for any answer at all, through its own client, which knows of proxies and certificates.

    Raises:
        Exception: there is none within these seconds.
    """
    huggingface_hub.get_session().head(constants.ENDPOINT, timeout=seconds)


@cache
def is_reachable() -> bool:
    """Return whether the hub gives an answer; what was found holds until `forget`.

    Where there is none, the client is told to be offline.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        ask(PROBE_SECONDS)
    # The HTTP library, and with it the errors, differ between releases of the client.
    except Exception:
        constants.HF_HUB_OFFLINE = True
        _told.append(True)
        return False
    return True


def why_not() -> str:
    """Return why nothing comes from the hub, as a part of a sentence."""
    return "the hub can't be reached" if _told else "the hub is not asked, since HF_HUB_OFFLINE is set"


def environment() -> dict[str, str]:
    """Return what a process is given that need not ask again."""
    return {"HF_HUB_OFFLINE": "1"} if _told else {}


def forget() -> None:
    """Ask anew the next time: the network may be back."""
    is_reachable.cache_clear()
    if _told:
        constants.HF_HUB_OFFLINE = False
        _told.clear()
