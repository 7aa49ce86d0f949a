"""Constraints against checkers that know nothing of them: jsonschema, re, listed languages, a matcher from scratch.

The vocabulary has every byte, tokens of several bytes that cut words and characters anywhere, two that are the same,
one that is not in use, and special ones.
"""

import gc
import itertools
import json
import re
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
from helpers import compilations

from forge_jax import Constraint, SamplingParams, Session, Vocabulary, forward, inputs, parallel
from forge_jax import params as P
from forge_jax.sampling import Matcher, build, matchers_of, matching, start_history
from forge_jax.sampling.allowed import allowed
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Norm, Rope

pytestmark = pytest.mark.usefixtures("quick_compiles")

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


def layer() -> Block:
    attention = Attention(2, 1, 8, 0.35, Rope(8))
    return Block((Branch("attention", attention, Norm()), Branch("mlp", Mlp(24), Norm())))


SPEC = ModelSpec(V, 16, (layer(),), 512, Norm(), tied=True)


@pytest.fixture(scope="module")
def params():
    tree = P.init(SPEC, jax.random.key(0))
    return tree | {"embed": tree["embed"] * 3}  # logits that differ


def bytes_of(ids) -> bytes:
    return b"".join(PIECES[i] or b"" for i in ids if i != END)


def free(bits: np.ndarray) -> set[int]:
    """The ids whose bits are set."""
    return set(np.flatnonzero(np.unpackbits(bits.astype("<u4").view(np.uint8), bitorder="little")).tolist())


def ask(matcher: Matcher, ids) -> set[int]:
    return free(matcher.allowed(np.array(ids, np.int32), -(-V // 32)))


def matcher(constraint: Constraint, stops=(END,)) -> Matcher:
    return Matcher(constraint, VOCABULARY, stops)


# ------------------------------------------------------------------------------------------------ masks
@pytest.mark.parametrize("constraint", constraints(), ids=lambda c: f"{c.kind} {c.text[:20]}")
def test_a_mask_is_what_may_be_appended(constraint):
    """For every token of the vocabulary: a matcher made on the spot takes the text with it, or does not."""
    rng = np.random.default_rng(1)
    asked, ids = matcher(constraint), []
    for _ in range(8):
        fresh = VOCABULARY.compiled(constraint).deep_copy()
        assert fresh.consume_tokens(ids)
        taken = {t for t in range(len(PIECES)) if fresh.deep_copy().try_consume_tokens([t]) == 1}
        if fresh.is_accepting():
            taken.add(END)
        assert ask(asked, ids) == taken
        if not (more := sorted(taken - {END})):
            break
        ids.append(int(rng.choice(more)))


@pytest.mark.parametrize(
    ("constraint", "language"),
    [
        (Constraint.choice(CHOICES), CHOICES),
        (Constraint.regex("(ab|b){1,3}é?"), [
            "".join(word) + end for n in (1, 2, 3) for word in itertools.product(("ab", "b"), repeat=n)
            for end in ("", "é")
        ]),
        (Constraint.json({"enum": ["ab", 12, [True, None]]}, compact=True), ['"ab"', "12", "[true,null]"]),
        (Constraint.grammar('start: "a"~1..2 (NO | "é")?\nNO: "no"'), ["a", "aa", "ano", "aano", "aé", "aaé"]),
    ],
    ids=["choice", "regex", "json", "grammar"],
)  # fmt: skip
def test_masks_of_languages_that_can_be_listed(constraint, language):
    """A token is allowed exactly if a text of the language goes on with its bytes; everywhere that tokens lead."""
    texts = [text.encode() for text in language]
    asked, todo, seen = matcher(constraint), [[]], set()
    while todo:
        ids = todo.pop()
        so_far = bytes_of(ids)
        if so_far in seen:
            continue
        seen.add(so_far)
        want = {
            t
            for t, piece in enumerate(PIECES)
            if piece and t not in (END, TOOL) and any(text.startswith(so_far + piece) for text in texts)
        }
        if so_far in texts:
            want.add(END)
        assert ask(asked, ids) == want
        todo += [[*ids, t] for t in want - {END}]
    assert seen >= set(texts)


def test_a_matcher_is_a_function_of_the_text():
    """Asked about texts in any order, right, cut, wrong and stopped ones, it answers as one that was made for each."""
    constraint = Constraint.json(PERSON)
    whole = list(b'{"name" : "ab","age": 12 , "tags":["ab", null] }')
    texts = [whole[:n] for n in range(len(whole) + 1)] + [[*whole, END], [1, 2], [*whole[:9], 0]]
    texts += [[*whole[:9], 0, 1], [*whole, len(PIECES)], [*whole[:3], -1], [*whole[:3], V + 1, *whole[3:]]]
    want = [ask(matcher(constraint), text) for text in texts]
    assert want[len(whole)] == {END}
    assert not any(want[len(whole) + 1 :])
    asked, buffer = matcher(constraint), np.zeros(99, np.int32)  # a buffer that is written over between two questions
    for i in np.random.default_rng(0).integers(0, len(texts), 200):
        text = buffer[: len(texts[i])]
        text[:] = texts[i]
        assert free(asked.allowed(text, -(-V // 32))) == want[i]
        assert asked.complete(text) == (texts[i] == whole)


def test_a_grammar_may_name_special_tokens():
    asked = matcher(Constraint.grammar('start: <|tool|> "ab"'))
    assert ask(asked, []) == {TOOL}
    assert ask(asked, [TOOL, ord("a")]) == {ord("b")}
    assert TOOL not in ask(matcher(Constraint.regex("(?s:.)*")), [])


def test_every_position_of_a_draft_at_once():
    """Under vmap: the masks after each prefix of some drafts, in one question."""
    constraint = Constraint.json(PERSON, compact=True)
    text = [9, 9, *b'{"name":"', *b'abx","age":1']
    rows = [text, [9, 9, 9, *b'{"', *b"nam7e"]]
    sampling = [SamplingParams(constraint=constraint)] * 2
    matchers = matchers_of(sampling, 2, VOCABULARY, [END])
    plan, values = build(sampling, 2, V, [END], matchers=matchers)
    tokens = np.zeros((2, 40), np.int32)
    for buffer, row in zip(tokens, rows, strict=True):
        buffer[: len(row)] = row
    history = start_history(plan, jnp.asarray(tokens), jnp.asarray([2, 3], jnp.int32), V)

    @jax.jit
    def masks(values, history, lengths):
        return jax.vmap(lambda n: allowed(values, replace(history, length_B=n), V))(lengths)

    lengths = np.array([[11, 5]]) + np.arange(6)[:, None]
    found = np.asarray(masks(values, history, jnp.asarray(lengths, jnp.int32)))
    assert found.shape == (6, 2, V)
    for t, b in np.ndindex(lengths.shape):
        start = (2, 3)[b]
        assert set(np.flatnonzero(found[t, b]).tolist()) == ask(matcher(constraint), rows[b][start : lengths[t, b]])
    assert not found[4:, 1].any()  # after "nam7" nothing is right


# ------------------------------------------------------------------------------------------------ sessions
def some_rows(first: int = 0) -> list[SamplingParams]:
    """A row of every constraint and a free one, as many in every test so that few programs are compiled."""
    kinds = [*constraints(), None]
    heat = (0.8, 1.5, 30.0)[first % 3]
    return [SamplingParams(temperature=heat, seed=first + i, constraint=kind) for i, kind in enumerate(kinds)]


def session(params, rows: list[SamplingParams], prompt=(3, 4, 5), *, new: int = 60, **options) -> Session:
    options = {"stop_ids": [END], "vocabulary": VOCABULARY, **options}
    return Session(SPEC, params, [list(prompt)] * len(rows), max_new_tokens=new, sampling=rows, **options)


def test_texts_of_a_random_model(params):
    """What ends is accepted by another reader; every row is what it is alone, and a free one what it is among free."""
    ended = 0
    for first in range(10):
        rows = some_rows(first)
        whole = session(params, rows)
        whole.advance()
        for row, output in zip(rows, whole.outputs(), strict=True):
            if row.constraint is not None and output.finish_reason == "stop":
                check(row.constraint, bytes_of(output.ids))
                ended += 1
    assert ended >= 115  # of 120: a text without bounds may go on for long
    for i, output in enumerate(whole.outputs()[:6]):
        alone = session(params, rows[i : i + 1])
        alone.advance()
        assert alone.outputs() == [output]
    plain = session(params, [rows[-1]] * len(rows))
    plain.advance()
    assert plain.outputs() == whole.outputs()[-1:] * len(rows)


def test_logprobs_are_the_free_model_s_and_other_processors_still_act(params):
    constraint = Constraint.regex("(ab|ba|x)+")
    row = SamplingParams(
        temperature=0, logprobs=2, constraint=constraint, repetition_penalty=1.3, frequency_penalty=0.7,
        logit_bias={ord("x"): 100.0, ord("q"): 500.0, 261: -np.inf}, bad_words=[[ord("x"), ord("x")]],
    )  # fmt: skip
    made = session(params, [row], new=12)
    made.advance()
    output = made.outputs()[0]
    text = bytes_of(output.ids)
    assert text.startswith(b"x")  # the bias of q is larger, but q is not allowed
    assert b"xx" not in text
    assert 261 not in output.ids
    logits, _ = forward(SPEC, params, inputs(np.array([[3, 4, 5, *output.ids]])))
    want = jax.nn.log_softmax(logits[0, 2:-1])
    np.testing.assert_allclose(output.logprobs, [want[i, t] for i, t in enumerate(output.ids)], atol=1e-5)


def test_a_complete_text_ends_a_row_without_any_stop_id(params):
    rows = [SamplingParams(seed=i, constraint=Constraint.choice(CHOICES) if i % 3 else None) for i in range(13)]
    made = session(params, rows, new=60, stop_ids=[])
    steps = [step for step in made.steps() if any(step)]
    for i, output in enumerate(made.outputs()):
        assert [step[i] for step in steps if step[i] is not None] == list(output.ids)
        if i % 3:
            check(rows[i].constraint, bytes_of(output.ids))
        assert output.finish_reason == ("stop" if i % 3 else "length")
    # what was complete is complete, also at the last token that was asked for
    short = session(params, [SamplingParams(constraint=Constraint.choice(["xyz"]))] * 13, new=3, stop_ids=[])
    short.advance()
    whole = [output for output in short.outputs() if len(output.ids) == 3]
    assert {(bytes_of(output.ids), output.finish_reason) for output in whole} == {(b"xyz", "stop")}


def test_rewinding_and_resuming(params):
    """A reply that is cut, then another turn: the constraint begins anew, in step with the text."""
    constraint = Constraint.json(PERSON, compact=True)
    rows = [SamplingParams(seed=i, constraint=constraint) for i in range(13)]
    made = session(params, rows)
    made.advance(7)
    for row in (0, 3):
        made.finish(row, 4)
    before = made.ids()
    made.extend([[7, i] for i in range(13)], max_new_tokens=120)
    made.advance()
    for i, output in enumerate(made.outputs()):
        assert output.finish_reason == "stop"
        check(constraint, bytes_of(output.ids))
        if i > 2:
            continue
        again = session(params, rows[i : i + 1], [3, 4, 5, *before[i], 7, i], new=120)
        again.advance()
        assert again.outputs()[0].ids == output.ids


def test_one_program_for_all_constraints(params):
    session(params, [SamplingParams(constraint=Constraint.regex("[ab]{9}"))], new=9).advance()
    with compilations() as seen:
        for constraint in constraints():
            session(params, [SamplingParams(constraint=constraint)], new=9).advance()
    assert seen == []


def test_matchers_live_as_long_as_their_session(params):
    before = len(matching._MATCHERS)
    made = session(params, [SamplingParams(constraint=Constraint.regex("a{9}"))], new=9)
    number = made.matchers[0].number
    assert len(matching._MATCHERS) == before + 1
    del made
    gc.collect()
    assert len(matching._MATCHERS) == before
    with pytest.raises(ValueError, match=f"constraint {number}: its matcher is gone"):
        matching.matcher(number)


def test_on_a_mesh(params):
    """Every device asks the host, and each gets the same answer."""
    mesh = parallel.make_mesh(2)
    rows = some_rows()
    plain = session(params, rows, new=20)
    mapped = session(parallel.shard(SPEC, params, mesh), rows, programs=parallel.programs(mesh), new=20)
    plain.advance()
    mapped.advance()
    assert [o.ids for o in mapped.outputs()] == [o.ids for o in plain.outputs()]


# ------------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint.json({"type": "nope"}), "Invalid type: nope"),
        (Constraint.json({"not": {}}), r'Unimplemented keys: \["not"\]'),
        (Constraint.json({"type": "integer", "minimum": 5, "maximum": 4}), "integer range is empty|Unsatisfiable"),
        (Constraint.json('{"a":' * 200 + "{}" + "}" * 200), "recursion limit"),
        (Constraint.regex("(a"), "unclosed group"),
        (Constraint.regex("a(?=b)"), "look-around"),
        (Constraint.regex("(" * 5000 + ")" * 5000), "nest"),
        (Constraint.grammar("start: foo"), 'unknown name: "foo"'),
        (Constraint.grammar("start: " + "(" * 10**5 + '"a"' + ")" * 10**5), "too deeply nested"),
        (Constraint.grammar("root ::= ("), "grammar constraint root ::= "),
    ],
    ids=lambda x: x.text[:20] if isinstance(x, Constraint) else "",
)
def test_what_is_not_valid_is_quoted(constraint, message):
    with pytest.raises(ValueError, match=message) as error:
        matcher(constraint)
    assert str(error.value).startswith(f"{constraint}: ")


def test_a_constraint_that_would_take_for_ever(monkeypatch):
    monkeypatch.setattr(matching, "COMPILE_SECONDS", 0.5)
    all_of = [{"type": "string", "pattern": f"a.{{{i}}}b"} for i in range(3, 30)]
    with pytest.raises(ValueError, match="not understood within"):
        matcher(Constraint.json({"allOf": all_of}))


def test_what_the_vocabulary_cannot_say(params):
    few = Vocabulary(tuple(p if p != b"b" and b"b" not in (p or b"") else None for p in PIECES), (END, TOOL))
    row = SamplingParams(constraint=Constraint.regex("aaab"))
    with pytest.raises(ValueError, match=r"row 0: the regex constraint aaab: no token .* goes on, after 3 tokens"):
        session(params, [row], vocabulary=few).advance()
    with pytest.raises(ValueError, match="every token is banned"):  # two wishes that cannot both be granted
        session(params, [SamplingParams(constraint=Constraint.regex("a"), min_tokens=3)]).advance()


def test_what_cannot_be_asked(params, monkeypatch):
    with pytest.raises(ValueError, match="expected Constraint.json"):
        SamplingParams(constraint="a+")  # type: ignore[arg-type]
    for schema in ("{", "[]", False, {"a": object()}, {"a": float("nan")}):
        with pytest.raises(ValueError, match="Constraint.json: the schema"):
            Constraint.json(schema)  # type: ignore[arg-type]
    for texts in ([], "ab", [1]):
        with pytest.raises(ValueError, match="at least one text"):
            Constraint.choice(texts)  # type: ignore[arg-type]
    row = SamplingParams(constraint=Constraint.regex("a"))
    with pytest.raises(ValueError, match="a constraint needs the bytes of the tokens"):
        Session(SPEC, params, [[1]], sampling=row)
    with pytest.raises(ValueError, match="need their matchers"):
        build(row, 1, V)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "metal")
        with pytest.raises(ValueError, match="the backend 'metal' cannot do; run it on one of cpu, gpu, tpu"):
            session(params, [row])
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r'pip install "forge-jax\[constrained\]"'):
        Matcher(Constraint.regex("b"), VOCABULARY)
