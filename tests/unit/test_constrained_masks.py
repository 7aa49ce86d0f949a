"""Masks of constraints against listed languages and matchers from scratch; what is no constraint."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from languages import CHOICES, END, PERSON, PIECES, TOOL, VOCABULARY, V, ask, bytes_of, constraints, free, matcher

from forge_jax import Constraint, SamplingParams
from forge_jax.sampling import build, matchers_of, matching, start_history
from forge_jax.sampling.allowed import allowed

pytestmark = pytest.mark.usefixtures("quick_compiles")


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
