"""Speculative decoding against its definition: whoever drafts, the text is the one of plain generation."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax import DraftModel, EarlyExit, Lookup, MtpHead, SamplingParams, Session, inputs, parallel, stack
from forge_jax.decoder import forward, hidden
from forge_jax.generation.speculation import Report, Sampler, Target
from forge_jax.generation.speculation.lookup import matches
from forge_jax.generation.speculation.pace import FIRST, Pace
from forge_jax.ops import Context
from forge_jax.params import Tree, map_params
from forge_jax.quantization import quantize
from forge_jax.sampling import build, distribution, start_history
from forge_jax.spec import Attention, Block, Branch, Mamba, Mlp, ModelSpec, Norm, Rope

pytestmark = pytest.mark.usefixtures("quick_compiles")

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


def texts(made: Session) -> list[list[int]]:
    """Prompt and output of every row."""
    return [
        row[:length].tolist()
        for row, length in zip(np.asarray(made.state.history.tokens_BS), made.lengths(), strict=True)
    ]


def assert_same(ours: Session, plain: Session) -> None:
    for one, other in zip(ours.outputs(), plain.outputs(), strict=True):
        assert one.ids == other.ids
        assert one.finish_reason == other.finish_reason
        if one.logprobs and other.logprobs and one.top_logprobs and other.top_logprobs:
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
            assert [set(top) for top in one.top_logprobs] == [set(top) for top in other.top_logprobs]


QUICK = ("hybrid-itself",)
CASES = [
    pytest.param(spec, kind, id=name, marks=() if name in QUICK else pytest.mark.slow)
    for spec, layers in ((RINGS, "rings"), (HYBRID, "hybrid"))
    for kind in DRAFTERS
    if (name := f"{layers}-{kind}")
]


@pytest.mark.parametrize(("spec", "kind"), CASES)
def test_every_sampler_gives_the_same_text(spec: ModelSpec, kind: str) -> None:
    """Ragged rows, greedy and sampled, with every processor, records and stop ids; and a second turn."""
    report = two_turns(spec, DRAFTERS[kind](spec))
    assert report.on
    if kind == "itself":
        assert report.acceptance > 0.6  # not all: rows end in the middle of their drafts


def two_turns(spec: ModelSpec, draft: Any) -> Report:
    """What a drafter did in two turns whose texts are those of plain generation; between them rows are rewound."""
    plain, ours = session(spec), session(spec, draft)
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
    return report


def test_streams_counts_and_continuations() -> None:
    """A step at a time, no more than was asked for, and several texts of a prompt."""
    drafter = DRAFTERS["itself"](HYBRID)
    plain, ours = session(HYBRID), session(HYBRID, drafter)
    plain.advance(4)
    ours.advance(4)
    assert ours.ids() == plain.ids()
    assert max(map(len, ours.ids())) == 5
    steps = list(ours.steps())
    plain.advance()
    for row, ids in enumerate(plain.ids()):
        assert [step[row] for step in steps if step[row] is not None] == ids
    plain, ours = session(HYBRID, prompts=PROMPTS[:2], n=2), session(HYBRID, drafter, PROMPTS[:2], n=2)
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lookup", "itself"])
@pytest.mark.parametrize("form", ["packed", "stacked", "bfloat16 cache"])
def test_other_forms_of_parameters_and_caches(form: str, kind: str) -> None:
    params, dtype = numbers(RINGS), "bfloat16" if form == "bfloat16 cache" else None
    if form == "packed":
        params = quantize(RINGS, params, "int8")
    if form == "stacked":
        params = stack(RINGS, params)
    draft = DraftModel(RINGS, params) if kind == "itself" else DRAFTERS[kind](RINGS)
    ours = Session(RINGS, params, PROMPTS, cache_dtype=dtype, draft=draft, draft_always=True, **OPTIONS)
    plain = Session(RINGS, params, PROMPTS, cache_dtype=dtype, **OPTIONS)
    plain.advance()
    ours.advance()
    for one, other in zip(ours.outputs(), plain.outputs(), strict=True):
        assert one.ids == other.ids


# ------------------------------------------------------------------------------------------------ a trained module
ATTENTION = Attention(2, 1, 8, 0.35)
TRAINED = ModelSpec(
    VOCABULARY,
    16,
    (Block((Branch("attention", ATTENTION, pre=Norm()), Branch("mlp", Mlp(20), pre=Norm()))),),
    512,
    final_norm=Norm(),
    tied=True,
)


def trained() -> MtpHead:
    rng = np.random.default_rng(5)
    drawn = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    own = {"embed_norm": {"scale": drawn(16)}, "hidden_norm": {"scale": drawn(16)}, "join": drawn(32, 16) * 0.3}
    ours = numbers(TRAINED, 6)
    return MtpHead(TRAINED, (own | {"layers": ours["layers"], "final_norm": {"scale": drawn(16)}},), tokens=3)


def rms(x: np.ndarray, scale: Any) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + Norm().eps) * np.asarray(scale, np.float64)


def module_layer(p: Tree, x_TD: np.ndarray) -> np.ndarray:
    """Attention of two query heads to one key head without positions, then a gated feed-forward layer."""
    a, m = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (p["attention"], p["mlp"]))
    y = rms(x_TD, a["pre"]["scale"])
    q, k, v = (np.einsum("td,dnh->nth", y, a[name]) for name in "qkv")
    scores = np.where(np.tri(len(x_TD)) > 0, ATTENTION.scale * q @ k[0].T, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    x_TD = x_TD + np.einsum("nth,nhd->td", weights / weights.sum(-1, keepdims=True) @ v[0], a["o"])
    y = rms(x_TD, m["pre"]["scale"])
    gate = y @ m["gate"]
    return x_TD + (gate / (1 + np.exp(-gate)) * (y @ m["up"])) @ m["down"]


def module_drafts(head: MtpHead, params: Tree, h_TD: np.ndarray, tokens: list[int], count: int) -> list[int]:
    """The formula of the module, in float64: h_TD are the model's normalised hidden states of all tokens but one."""
    p, embed = head.params[0], np.asarray(params["embed"], np.float64)
    for _ in range(count):
        left, right = rms(embed[tokens[1:]], p["embed_norm"]["scale"]), rms(h_TD, p["hidden_norm"]["scale"])
        x_TD = module_layer(p["layers"]["0"], np.concatenate([left, right], -1) @ np.asarray(p["join"], np.float64))
        g_TD = rms(x_TD, p["final_norm"]["scale"])
        tokens = [*tokens, int((g_TD[-1] @ embed.T).argmax())]
        h_TD = np.concatenate([h_TD, g_TD[-1:]])
    return tokens[-count:]


def drafted(ours: Session, head: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Text and drafts of every row: after its prompt, and after nine tokens of which some were drafted rightly."""
    target, sampler = Target(ours.spec, ours.params, Context()), Sampler(ours.plan, ours.values)
    for _ in range(2):
        held = ours.state.drafting
        assert held is not None
        drafts, _, _ = head.propose(target, sampler, ours.state, held.memory, jnp.full(4, 3))
        yield from zip(texts(ours), drafts.tokens_BK.tolist(), strict=True)
        ours.advance(9)


def states(spec: ModelSpec, params: Tree, tokens: list[int]) -> np.ndarray:
    """The model's normalised hidden states of all tokens but the last."""
    x_BTD, _ = hidden(spec, params, inputs(np.array([tokens[:-1]])))
    return rms(np.asarray(x_BTD[0], np.float64), params["final_norm"]["scale"])


@pytest.mark.slow
def test_the_trained_module_computes_its_formula() -> None:
    """Drafts after a prompt, and after some rounds, in which it learned from what was accepted and what was not."""
    head, params = trained(), numbers(RINGS)
    options = {"sampling": SamplingParams(temperature=0), "max_new_tokens": 40, "stop_ids": ()}
    ours, plain = session(RINGS, head, **options), session(RINGS, **options)
    plain.advance()
    for tokens, drafts in drafted(ours, head):
        assert drafts == module_drafts(head, params, states(RINGS, params, tokens), tokens, 3)
    ours.advance()
    assert ours.ids() == plain.ids()
    assert ours.speculation is not None
    assert ours.speculation.proposed > 0


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


# ------------------------------------------------------------------------------------------------ the law of the texts
TOY = ModelSpec(5, 8, (attending(None), attending(3)), 256, final_norm=Norm(), tied=True)
LENGTH = 3
SAMPLERS = {
    "temperature": SamplingParams(temperature=0.8),
    "top-k": SamplingParams(temperature=1.2, top_k=3),
    "top-p": SamplingParams(temperature=1.0, top_p=0.8),
    "min-p": SamplingParams(temperature=1.0, min_p=0.2),
}
TOY_DRAFTERS = {
    "lookup": lambda: Lookup(tokens=2, shortest=1),
    "draft model": lambda: DraftModel(SMALL_TOY, numbers(SMALL_TOY, 2), tokens=2),
    "early exit": lambda: EarlyExit(layers=1, tokens=2),
    "trained module": lambda: toy_module(),
}
SMALL_TOY = dataclasses.replace(TOY, layers=TOY.layers[:1])


def toy_module() -> MtpHead:
    drawn = lambda *shape: jnp.asarray(np.random.default_rng(9).normal(size=shape).astype(np.float32))  # noqa: E731
    own = {name: {"scale": drawn(TOY.dim)} for name in ("embed_norm", "hidden_norm", "final_norm")}
    own |= {"join": drawn(2 * TOY.dim, TOY.dim) * 0.3, "layers": numbers(SMALL_TOY, 6)["layers"]}
    return MtpHead(SMALL_TOY, (own,), tokens=2)


def exact_law(spec: ModelSpec, params: Tree, prompt: list[int], sampling: SamplingParams) -> np.ndarray:
    """The probability of every text of LENGTH tokens, from plain passes over all prefixes."""
    law = np.ones((1,))
    texts = np.array([prompt])
    for _ in range(LENGTH):
        logits, _ = forward(spec, params, inputs(texts))
        plan, values = build(sampling, len(texts), spec.logits)
        history = start_history(plan, jnp.asarray(texts), jnp.full(len(texts), texts.shape[1]), spec.logits)
        p_BV = np.asarray(distribution(plan, values, logits[:, -1], history), np.float64)
        law = (law[:, None] * p_BV / p_BV.sum(1, keepdims=True)).reshape(-1)
        texts = np.concatenate(
            [np.repeat(texts, spec.logits, 0), np.tile(np.arange(spec.logits), len(texts))[:, None]], 1
        )
    return law


def chi_square(law: np.ndarray, counts: np.ndarray) -> tuple[float, int]:
    """The statistic over texts that are expected at least 5 times, the rest taken together; degrees of freedom."""
    expected = law * counts.sum()
    assert counts[law == 0].sum() == 0, "a text that the sampler cannot give"
    often = expected >= 5
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    keep = wanted > 0
    return float(((observed - wanted) ** 2 / np.where(keep, wanted, 1)).sum(where=keep)), int(keep.sum()) - 1


@pytest.mark.parametrize(
    ("kind", "sampler", "rows", "calls"),
    [
        pytest.param(kind, sampler, 8192, 25, marks=pytest.mark.slow, id=f"{kind}-{sampler}")
        for kind in TOY_DRAFTERS
        for sampler in SAMPLERS
    ]
    + [pytest.param("lookup", "temperature", 512, 4, id="quick")],
)
def test_texts_have_the_law_of_the_sampler(kind: str, sampler: str, rows: int, calls: int) -> None:
    """The drafters take part, and the texts are those of the sampler."""
    assert_law(TOY_DRAFTERS[kind](), SAMPLERS[sampler], rows, calls)


def assert_law(draft: Any, sampling: SamplingParams, rows: int, calls: int) -> None:
    """Chi-square over all texts of 3 tokens: below the quantile of 1 %, with these seeds; and drafts were accepted."""
    params, prompt = numbers(TOY), [1, 2, 1, 2, 1]
    counts = np.zeros(TOY.logits**LENGTH)
    accepted = 0
    options: dict[str, Any] = {"max_new_tokens": LENGTH, "sampling": sampling, "n": rows}
    for seed in range(calls):
        made = Session(TOY, params, [prompt], draft=draft, draft_always=True, seed=seed, **options)
        made.advance()
        assert made.speculation is not None
        accepted += made.speculation.accepted
        codes = np.array(made.ids()) @ TOY.logits ** np.arange(LENGTH)[::-1]
        counts += np.bincount(codes, minlength=len(counts))
    statistic, free = chi_square(exact_law(TOY, params, prompt, sampling), counts)
    # Wilson and Hilferty: (x / k) ** (1 / 3) is nearly normal; 2.326 is its quantile of 1 %
    assert statistic < free * (1 - 2 / (9 * free) + 2.326 * (2 / (9 * free)) ** 0.5) ** 3
    assert accepted > 0
