"""What the text of a row must be, as a user says it: a JSON schema, a regex, a grammar, or one of some texts.

Plain, hashable data; what it means is decided in `forge_jax.sampling.matching`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Constraint:
    """The texts that a row may be. Made by `json`, `regex`, `grammar` or `choice`.

    >>> Constraint.choice(["yes", "no"])
    Constraint(kind='choice', text='["yes", "no"]')
    """

    kind: Literal["json", "regex", "grammar", "choice"]
    text: str

    @classmethod
    def json(cls, schema: Mapping[str, Any] | bool | str, *, compact: bool = False) -> "Constraint":
        """JSON that a schema (draft 2020-12) accepts, its properties in the order of the schema.

        Args:
            schema: a mapping, or its JSON text; {} or True for any JSON.
            compact: no whitespace between the parts; otherwise any.

        Raises:
            ValueError: it is no JSON, or neither an object nor a boolean.
        """
        try:
            given = json.loads(schema) if isinstance(schema, str) else schema
            if given is True:
                given = {}
            if not isinstance(given, Mapping):
                raise ValueError(f"found {given!r}, expected an object")
            if compact:
                options = given.get("x-guidance", {})
                given = {**given, "x-guidance": {**options, "whitespace_flexible": False}}
            return cls("json", json.dumps(given, ensure_ascii=False, allow_nan=False))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"Constraint.json: the schema is not one that JSON can say: {error}") from error

    @classmethod
    def regex(cls, pattern: str) -> "Constraint":
        r"""Texts that a regular expression matches as a whole, in the syntax of Rust; \d is [0-9], no look-around."""
        return cls("regex", pattern)

    @classmethod
    def grammar(cls, text: str) -> "Constraint":
        """Texts of a context-free grammar: Lark as llguidance reads it, or GBNF (rules with "::=")."""
        return cls("grammar", text)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> "Constraint":
        """One of some texts.

        Raises:
            ValueError: there are none, or something else than texts.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"Constraint.choice: found {texts!r}, expected a list of at least one text")
        return cls("choice", json.dumps(list(texts), ensure_ascii=False))

    def __str__(self) -> str:
        """The kind and the beginning of the text, for messages."""
        return f"the {self.kind} constraint {self.text if len(self.text) <= 80 else self.text[:77] + '...'}"

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts of a choice."""
        return tuple(json.loads(self.text))

    @property
    def gbnf(self) -> bool:
        """Whether a grammar's rules are written with "::="."""
        return re.search(r"(?m)^\s*[\w-]+\s*::=", self.text) is not None
