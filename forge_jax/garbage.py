"""When Python looks for garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for none where a great many objects are made that stay: modules, or programs. A sixth of the time of both
    would go into looking at them again and again.

    Afterwards they count as old, as if they had been looked at; unless somebody has frozen objects of theirs.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()  # to the oldest of the three generations
            gc.enable()
