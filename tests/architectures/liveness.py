"""How to change a config by one value, and which changes may leave the logits as they are.

A key that is read must show: it changes the tensors that are asked for, or is refused, or moves the logits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from helpers import Golden

from converters.take import Take

Path = tuple[str, ...]


class Reader(Take):
    """A `Take` whose `seen` has only what was read: what an architecture ignores on purpose is not in it."""

    def ignore(self, *keys: str) -> None:
        """Do not count these as read."""


def others(value: Any) -> Any:
    """Another value of the same kind, or None where there is no telling."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value * 1.25
        case str():
            swap = {"relu": "silu", "silu": "gelu", "sliding_attention": "full_attention", "full_attention": "sliding_attention"}
            return swap.get(value, "relu")
        case [first, *rest]:
            return [others(first), *rest]
        case _:
            return None


def changes(config: dict[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path of a key, another value) for every value of a config, nested ones too."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from changes(value, (*prefix, key))
        elif others(value) is not None:
            yield (*prefix, key), others(value)


def changed(config: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """The config with one value replaced."""
    key, *rest = path
    return config | {key: changed(config[key], tuple(rest), value) if rest else value}


@dataclass(frozen=True)
class Idle:
    """Keys that may be without effect in some goldens, and why."""

    goldens: str
    keys: str
    why: str

    def covers(self, golden: Golden, path: Path) -> bool:
        """Whether a key of a golden is excused."""
        return fnmatch(golden.name, self.goldens) and any(fnmatch(".".join(path), key) for key in self.keys.split())


IDLE = (
    Idle("*", "max_position_embeddings n_positions seq_length", "how long a context may be, not what it says"),
)
