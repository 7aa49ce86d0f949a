"""Asks whether the hub can be asked. Everything that speaks to it goes through here first, because its client, when
nobody answers, tries again for about 23 s.
"""

import contextlib
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

REACH_SECONDS = 3.0


def hub_answers() -> bool:
    """Whether the hub may be asked (HF_HUB_OFFLINE) and answers anything at all within REACH_SECONDS."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and reachable(constants.ENDPOINT, REACH_SECONDS)


def reachable(url: str, seconds: float) -> bool:
    """Whether a server answers a HEAD request in time, with whatever status. Proxies of the environment are used."""
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError, ValueError):
            try:
                urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            except urllib.error.HTTPError as error:  # an answer, if not a friendly one
                error.close()
            answered.set()

    asking = threading.Thread(target=ask, daemon=True)  # a thread, because looking up a host's name has no timeout
    asking.start()
    asking.join(seconds)
    return answered.is_set()


@contextlib.contextmanager
def hub_bars(*, show: bool) -> Iterator[None]:
    """Hide the hub client's progress bars, a switch of the whole process, for the time of a block."""
    from huggingface_hub import utils

    if show or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()
