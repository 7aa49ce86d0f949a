"""Switches of the environment that say which kernels a program takes, read while it is traced and not when it runs."""

import os
from collections.abc import Callable


def switched(name: str, *others: str, default: str = "0") -> str:
    """What a switch is set to: "1", "0" or one of `others`; the default where it is not set.

    Raises:
        ValueError: it is something else.
    """
    given, expected = os.environ.get(name) or default, ("1", "0", *others)
    if given not in expected:
        raise ValueError(f"{name} is {given!r}; expected {', '.join(expected[:-1])} or {expected[-1]}")
    return given


def told(name: str, what: str, on: Callable[[], str]) -> str:
    """A line for people about kernels that a switch asks for: `on` says how they are on, or is empty."""
    try:
        found = on()
    except ValueError as error:
        return f"{what}: none, {error}"
    return f"{what}: {found or ('off' if os.environ.get(name) else f'off ({name} is not set)')}"
