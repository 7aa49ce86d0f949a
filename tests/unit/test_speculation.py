"""Speculative decoding against its definition: whoever drafts, the text is the one of plain generation."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax import DraftModel, EarlyExit, Lookup, SamplingParams, Session, parallel
from forge_jax.generation.speculation.lookup import matches
from forge_jax.generation.speculation.pace import FIRST, Pace
from forge_jax.params import Tree, map_params
from forge_jax.spec import Attention, Block, Branch, Mamba, Mlp, ModelSpec, Norm, Rope

VOCABULARY = 37
PROMPTS = [[1, 2, 3], [4, 5, 6, 7] * 5, [8, 9, 10, 8, 9], [11] * 12]
STOP = 30
SAMPLING = [
    SamplingParams(temperature=0, frequency_penalty=0.3, presence_penalty=0.1, logprobs=2),
    SamplingParams(temperature=0.7, top_k=9, repetition_penalty=1.2, seed=1),
    SamplingParams(temperature=0, bad_words=((3, 4), (5,)), min_tokens=12, logit_bias={STOP: 3.0}),
    SamplingParams(temperature=1.1, top_p=0.9, min_p=0.02, min_tokens=3),
]
OPTIONS: dict[str, Any] = {"max_new_tokens": [30, 25, 40, 9], "sampling": SAMPLING, "stop_ids": [STOP]}


@pytest.fixture(scope="module", autouse=True)
def _quick_compiles() -> Iterator[None]:
    """Programs that make a few tokens need not be fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def attending(window: int | None) -> Block:
    attention = Attention(4, 2, 8, 0.35, rope=Rope(8), window=window)
    return Block((Branch("attention", attention, pre=Norm()), Branch("mlp", Mlp(20), pre=Norm())))


RUNNING = Block((Branch("mixer", Mamba(dim=16, state=4, conv=4, rank=2), pre=Norm()),))


def model(*layers: Block) -> ModelSpec:
    return ModelSpec(VOCABULARY, 16, layers, 512, final_norm=Norm(), tied=True)


def numbers(spec: ModelSpec, seed: int = 0) -> Tree:
    rng = np.random.default_rng(seed)
    return map_params(lambda p: jnp.asarray(rng.normal(size=p.shape).astype(np.float32) * np.float32(0.5)), spec)


RINGS = model(attending(None), attending(5))
HYBRID = model(RUNNING, attending(5))
SMALL = model(attending(None))
DRAFTERS = {
    "lookup": lambda spec: Lookup(tokens=5, shortest=1),
    "itself": lambda spec: DraftModel(spec, numbers(spec)),
    "other": lambda spec: DraftModel(SMALL, numbers(SMALL, 1), tokens=3),
    "early exit": lambda spec: EarlyExit(layers=1),
}


def session(spec: ModelSpec, draft: Any = None, prompts: Any = PROMPTS, **options: Any) -> Session:
    given = OPTIONS | {"draft": draft, "draft_always": draft is not None} | options
    return Session(spec, numbers(spec), prompts, **given)


def assert_same(ours: Session, plain: Session) -> None:
    for one, other in zip(ours.outputs(), plain.outputs(), strict=True):
        assert one.ids == other.ids
        assert one.finish_reason == other.finish_reason
        if one.logprobs and other.logprobs and one.top_logprobs and other.top_logprobs:
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
            assert [set(top) for top in one.top_logprobs] == [set(top) for top in other.top_logprobs]


QUICK = ("rings-itself", "rings-early exit", "hybrid-lookup")
CASES = [
    pytest.param(spec, kind, id=name, marks=() if name in QUICK else pytest.mark.slow)
    for spec, layers in ((RINGS, "rings"), (HYBRID, "hybrid"))
    for kind in DRAFTERS
    if (name := f"{layers}-{kind}")
]


@pytest.mark.parametrize(("spec", "kind"), CASES)
def test_every_sampler_gives_the_same_text(spec: ModelSpec, kind: str) -> None:
    """Ragged rows, greedy and sampled, with every processor, records and stop ids; and a second turn."""
    plain, ours = session(spec), session(spec, DRAFTERS[kind](spec))
    for turn in range(2):
        for each in (plain, ours):
            if turn:
                each.finish(2, 6)
                each.extend([[1, 2], [3], [4, 5, 6], [7]], max_new_tokens=11)
            each.advance()
        assert_same(ours, plain)
        report = ours.speculation
        assert report is not None
        assert report.proposed > 0
        assert report.on
        if kind == "itself":
            assert report.acceptance > 0.6  # not all: rows end in the middle of their drafts


def test_streams_counts_and_continuations() -> None:
    """A step at a time, no more than was asked for, and several texts of a prompt."""
    drafter = DRAFTERS["itself"](RINGS)
    plain, ours = session(RINGS), session(RINGS, drafter)
    ours.advance(4)
    assert list(map(len, ours.ids())) == [5] * 4
    steps = list(ours.steps())
    plain.advance()
    for row, ids in enumerate(plain.ids()):
        assert [step[row] for step in steps if step[row] is not None] == ids
    plain, ours = session(RINGS, prompts=PROMPTS[:2], n=2), session(RINGS, drafter, PROMPTS[:2], n=2)
    plain.advance()
    ours.advance()
    assert_same(ours, plain)


@pytest.mark.slow
def test_on_a_mesh() -> None:
    """The draft model is whole on every device, the target split."""
    mesh = parallel.make_mesh(2)
    placed = parallel.shard(RINGS, numbers(RINGS), mesh)
    plain = session(RINGS)
    plain.advance()
    for kind in ("other", "early exit"):
        draft = DRAFTERS[kind](RINGS)
        given = OPTIONS | {"draft": draft, "draft_always": True}
        ours = Session(RINGS, placed, PROMPTS, programs=parallel.programs(mesh), **given)
        ours.advance()
        assert_same(ours, plain)


# ------------------------------------------------------------------------------------------------ parts
def test_matches_are_those_of_a_plain_search() -> None:
    tokens = np.random.default_rng(0).integers(0, 3, (4, 40)).astype(np.int32)
    lengths = np.array([40, 17, 3, 1], np.int32)
    found = np.asarray(matches(jnp.asarray(tokens), jnp.asarray(lengths), 6))
    for row, length, ours in zip(tokens.tolist(), lengths, found, strict=True):
        for place in range(40):
            longest = 0
            if place < length:
                while longest < min(6, place) and row[place - longest - 1] == row[length - longest - 1]:
                    longest += 1
            assert ours[place] == longest


def test_drafting_that_does_not_pay_pauses_longer_each_time() -> None:
    """A round of two plain steps' time, and half a draft accepted in it."""
    pace, drafted = Pace(32), []
    for _ in range(60):
        passes, drafts = pace.next()
        drafted.append(drafts)
        steps, rounds = (0, passes) if drafts else (passes, 0)
        pace.learn(steps, rounds, 0.5 * rounds, 0.04 * steps + 0.08 * rounds)
    pauses = "".join("d" if d else "." for d in drafted).split("d")
    lengths = [len(pause) for pause in pauses if len(pause) > 1]
    assert lengths[:3] == [4, 8, 16]
    assert sum(drafted) <= 10


def test_drafting_that_pays_goes_on() -> None:
    """Three drafts accepted in a round of two plain steps' time, on a machine that stalls now and then."""
    pace, passed = Pace(32), 0
    for i in range(40):
        passes, drafts = pace.next()
        steps, rounds = (0, passes) if drafts else (passes, 0)
        stall = 3.0 if i % 3 == 2 else 1.0
        pace.learn(steps, rounds, 3.0 * rounds, stall * (0.04 * steps + 0.08 * rounds))
        passed += steps
    assert pace.on
    assert passed == FIRST // 2


# ------------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (Lookup(tokens=0), "Lookup: tokens = 0; expected 1 to 31"),
        (Lookup(shortest=5, longest=4), "matches of 5 to 4 tokens"),
        (EarlyExit(layers=2), "layers = 2; expected 1 to 1 of this model"),
        (DraftModel(ModelSpec(36, 16, (), 512), {}), "it knows 36 tokens, the model 37"),
        (DraftModel(ModelSpec(37, 16, (), 256), {}), "its context is 256 tokens, the model's 512"),
    ],
)
def test_drafters_that_do_not_fit(draft: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        session(RINGS, draft)
