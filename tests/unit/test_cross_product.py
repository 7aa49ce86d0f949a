"""Everything with everything: layouts, codecs, batches, drafts, adapters and devices give the plain session's text.

The plain session of a codec and an adapter is a row alone, dense, on one device, without drafts. A text must be the
same in whatever company it is made. Nothing is left out: what does not go together is an error that says so.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax import Session
from forge_jax.generation.programs import LOCAL
from forge_jax.generation.speculation import EarlyExit, Lookup
from forge_jax.lora import Adapter, Update, attach
from forge_jax.parallel import make_mesh, programs, shard
from forge_jax.params import Tree, init
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Norm, Rope

pytestmark = pytest.mark.usefixtures("quick_compiles")

NORM = Norm(1e-5)


def layer(window: int | None) -> Block:
    attention = Attention(4, 2, 16, 0.25, Rope(16), window=window)
    return Block((Branch("attention", attention, pre=NORM), Branch("mlp", Mlp(48), pre=NORM)))


SPEC = ModelSpec(61, 32, (layer(8), layer(None)), 256, NORM)
PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3], [3, 1, 4, 1, 5], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4])
ADAPTERS = (1, -1, 0)
NEW = 34  # a ring in pages comes round

LAYOUTS = ("dense", "paged")
CODECS = ("float32", "int8", "int4", "int2", "bfloat16", "fp8", {"*": "int8", "full.-1": "bfloat16"})
QUICK = 3  # of the codecs, in the ordinary tests
BATCHES = (1, 3)
DRAFTS = (None, Lookup(tokens=4, shortest=1), EarlyExit(layers=1, tokens=3))
LORA = (False, True)
DEVICES = (1, 2)
WAYS: tuple[tuple[Any, ...], ...] = (LAYOUTS, CODECS, BATCHES, DRAFTS, LORA, DEVICES)
Case = tuple[int, ...]
"""Which of each of the WAYS."""


def every_pair() -> list[Case]:
    """Few cases in which any two choices meet: always the one with the most pairs that have not met yet."""

    def pairs(case: Case) -> set[tuple[int, int, int, int]]:
        return {(i, case[i], j, case[j]) for i, j in itertools.combinations(range(len(WAYS)), 2)}

    every = list(itertools.product(*(range(QUICK if way is CODECS else len(way)) for way in WAYS)))
    left, out = set[tuple[int, int, int, int]]().union(*map(pairs, every)), list[Case]()
    while left:
        out.append(max(every, key=lambda case: len(pairs(case) & left)))
        left -= pairs(out[-1])
    return out


def adapters() -> list[Adapter]:
    """Two adapters of unequal ranks."""
    rng = np.random.default_rng(0)

    def update(rank: int, out: tuple[int, ...]) -> Update:
        a, b = rng.normal(size=(32, rank)), rng.normal(size=(rank, *out))
        return Update(jnp.asarray(0.2 * a, jnp.float32), jnp.asarray(0.2 * b, jnp.float32))

    out = []
    for rank in (3, 5):
        attention = {f"layers.{i}.attention.q": update(rank, (4, 16)) for i in range(2)}
        out.append(Adapter(attention | {"layers.1.mlp.up": update(rank, (48,))}))
    return out


@functools.cache
def parameters(lora: bool, devices: int) -> tuple[Tree, Any]:
    """The parameters where they are to run, and the programs that run them."""
    params = init(SPEC, jax.random.key(5))
    params = attach(params, adapters()) if lora else params
    if devices == 1:
        return params, LOCAL
    mesh = make_mesh(devices)
    return shard(SPEC, params, mesh), programs(mesh)


def texts(case: Case, rows: list[int]) -> list[tuple[int, ...]]:
    """What a session makes of some prompts."""
    layout, codec, _, draft, lora, devices = (way[i] for way, i in zip(WAYS, case, strict=True))
    params, run = parameters(lora, devices)
    session = Session(
        SPEC,
        params,
        [PROMPTS[row] for row in rows],
        max_new_tokens=NEW,
        layout=layout,
        cache_dtype=codec,
        draft=draft,
        draft_always=True,
        adapters=[ADAPTERS[row] for row in rows] if lora else None,
        programs=run,
    )
    session.advance()
    if draft is not None:
        report = session.speculation
        assert report is not None
        assert report.proposed > 0
    return [output.ids for output in session.outputs()]


@functools.cache
def plain(codec: int, lora: int, row: int) -> tuple[int, ...]:
    """The text of a row alone: dense, no drafts, one device."""
    return texts((0, codec, 0, 0, lora, 0), [row])[0]


def check(case: Case) -> None:
    """A case gives the plain texts."""
    rows = list(range(BATCHES[case[2]]))
    assert texts(case, rows) == [plain(case[1], case[4], row) for row in rows]


def name(case: Case) -> str:
    words = [str(way[i]) for way, i in zip(WAYS, case, strict=True)]
    return "-".join(word.split("(")[0].replace(" ", "") for word in words)


@pytest.mark.parametrize("case", every_pair(), ids=name)
def test_any_two_choices_meet(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", list(itertools.product(*(range(len(way)) for way in WAYS))), ids=name)
def test_all_choices_meet(case: Case) -> None:
    check(case)


def test_adapters_make_a_difference() -> None:
    assert len({plain(0, lora, 0) for lora in (0, 1)}) == 2


def test_what_does_not_go_together_says_so() -> None:
    params, _ = parameters(True, 1)
    with pytest.raises(ValueError, match="invariant=64 beside adapters by row"):
        Session(SPEC, params, [PROMPTS[0]], max_new_tokens=2, adapters=[1], invariant=64)
    with pytest.raises(ValueError, match=r"without adapters by row, and these rows have \[1\]"):
        Session(SPEC, params, [PROMPTS[0]], max_new_tokens=2, adapters=[1]).held()
    held = Session(SPEC, params, [PROMPTS[0]], max_new_tokens=2, adapters=[-1]).held()
    with pytest.raises(ValueError, match=r"without adapters by row, and these rows have \[0\]"):
        Session(SPEC, params, [PROMPTS[0]], max_new_tokens=2, adapters=[0], held=held)
    session = Session(SPEC, params, [PROMPTS[0]], max_new_tokens=NEW, adapters=[-1], held=held)
    session.advance()
    alone = Session(SPEC, params, [PROMPTS[0]], max_new_tokens=NEW, adapters=[-1])
    alone.advance()
    assert session.outputs() == alone.outputs()
