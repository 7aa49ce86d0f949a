"""What tests of constraints share: a vocabulary, constraints of every kind, and readers that know nothing of them.

The vocabulary has every byte, tokens of several bytes that cut words and characters anywhere, two that are the same,
one that is not in use, and special ones.
"""

import json
import re

import jsonschema
import numpy as np

from forge_jax import Constraint, Vocabulary
from forge_jax.sampling import Matcher

WORDS = ['{"', '":', '",', '"}', "true", "ab", "abc", "ba", "12", "-1", "[]", "a b", "yes", "no", "é", "é"]
PIECES = (
    *(bytes([byte]) for byte in range(256)),
    *(word.encode() for word in WORDS),
    "é".encode()[1:] + b'"',
    None,
    b"<|end|>",
    b"<|tool|>",
)
V, END, TOOL = len(PIECES) + 4, len(PIECES) - 2, len(PIECES) - 1  # the embedding has four rows more
VOCABULARY = Vocabulary(PIECES, (END, TOOL))

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["ab", "é", None]}, "maxItems": 3},
        "size": {"anyOf": [{"type": "number", "minimum": -1, "maximum": 12.5}, {"type": "null"}]},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "leaf": {"type": "boolean"},
        "pair": {"type": "array", "prefixItems": [{"$ref": "#/$defs/leaf"}] * 2, "items": False, "minItems": 2},
    },
    "anyOf": [
        {"type": "object", "properties": {"k": {"$ref": "#/$defs/pair"}}, "required": ["k"], "maxProperties": 1},
        {"$ref": "#/$defs/pair"},
    ],
}
DATES = {"type": "string", "format": "date-time"}
SCHEMAS = [PERSON, TREE, {"enum": ["ab", 12, None, {"a b": [True]}]}, {"type": "string", "pattern": "^(ab)+é?$"}, DATES]
REGEXES = [r"(ab|ba)+\d{2,4}", r"[^\x00-\x1f]{3,9}/\d", r"\s?[a-zé_]+@ab\.(no|yes)", r"é+|-?1\.[0-9]*"]
CHOICES = ["yes", "no", "yes, no", 'a "quoted"\n\\ text\t', "\u2028é\x01"]
SUM = 'start: term ("+" term)~0..3\nterm: NUMBER | "(" start ")"\nNUMBER: /[1-9][0-9]{0,2}/'
GBNF = 'root ::= item ("," item)*\nitem ::= "ab" | [0-9]{1,3}'


def constraints() -> list[Constraint]:
    return [
        *(Constraint.json(schema, compact=True) for schema in SCHEMAS),
        *map(Constraint.regex, REGEXES),
        Constraint.choice(CHOICES),
        Constraint.grammar(SUM),
        Constraint.grammar(GBNF),
    ]


def check(constraint: Constraint, text: bytes) -> None:
    """Raise unless an independent reader finds the text right."""
    written = text.decode("utf-8")
    match constraint.kind:
        case "json":
            schema = json.loads(constraint.text)
            jsonschema.validate(json.loads(written), schema, format_checker=jsonschema.FormatChecker())
        case "regex":
            assert re.fullmatch(constraint.text, written), written
        case "choice":
            assert written in CHOICES
        case _ if constraint.gbnf:
            assert re.fullmatch(r"(ab|[0-9]{1,3})(,(ab|[0-9]{1,3}))*", written), written
        case _:
            assert re.fullmatch(r"[0-9+()]+", written), written
            assert eval(written) > 0  # Python's own grammar of sums


def bytes_of(ids) -> bytes:
    return b"".join(PIECES[i] or b"" for i in ids if i != END)


def free(bits: np.ndarray) -> set[int]:
    """The ids whose bits are set."""
    return set(np.flatnonzero(np.unpackbits(bits.astype("<u4").view(np.uint8), bitorder="little")).tolist())


def ask(matcher: Matcher, ids) -> set[int]:
    return free(matcher.allowed(np.array(ids, np.int32), -(-V // 32)))


def matcher(constraint: Constraint, stops=(END,)) -> Matcher:
    return Matcher(constraint, VOCABULARY, stops)
