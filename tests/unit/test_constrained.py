"""Sessions with constraints against checkers that know nothing of them: jsonschema, re, Python's own grammar."""

import gc
import sys

import jax
import numpy as np
import pytest
from helpers import compilations
from languages import CHOICES, END, PERSON, PIECES, TOOL, VOCABULARY, V, bytes_of, check, constraints

from forge_jax import Constraint, SamplingParams, Session, Vocabulary, forward, inputs, parallel
from forge_jax import params as P
from forge_jax.sampling import Matcher, build, matching
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Norm, Rope

pytestmark = pytest.mark.usefixtures("quick_compiles")


def layer() -> Block:
    attention = Attention(2, 1, 8, 0.35, Rope(8))
    return Block((Branch("attention", attention, Norm()), Branch("mlp", Mlp(24), Norm())))


SPEC = ModelSpec(V, 16, (layer(),), 512, Norm(), tied=True)


@pytest.fixture(scope="module")
def params():
    tree = P.init(SPEC, jax.random.key(0))
    return tree | {"embed": tree["embed"] * 3}  # logits that differ


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
