"""What one session has read, others go on with: forked, trimmed, and through a file."""

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same
from quick import QUICK

from converters.safetensors_file import Entry, open_safetensors, write_safetensors
from forge_jax import SamplingParams, prompt_cache, stack
from forge_jax import cache as caches
from forge_jax.cache import Cache
from forge_jax.generation import Held, Session, fork, trim
from forge_jax.generation.layouts import Stacked
from forge_jax.generation.programs import local_programs
from forge_jax.generation.sizes import BURST
from forge_jax.generation.speculation import Lookup
from forge_jax.loading import Model
from forge_jax.parallel import make_mesh, programs, shard
from forge_jax.params import init
from forge_jax.spec import Attention, Block, Branch, Mlp, ModelSpec, Norm, Rope, ShortConv

pytestmark = pytest.mark.usefixtures("quick_compiles")

ATTENTION = Attention(4, 2, 8, 0.35, rope=Rope(8))
OPS = (ATTENTION, replace(ATTENTION, window=9))


def model(ops: tuple[Any, ...] = OPS, seed: int = 0) -> Model:
    layers = tuple(Block((Branch("mixer", op, pre=Norm()), Branch("mlp", Mlp(48), pre=Norm()))) for op in ops)
    spec = ModelSpec(50, 32, layers, 512, Norm(), tied=True)
    return Model(spec, init(spec, jax.random.key(seed)), None, MappingProxyType({}))


MODEL = model()
PROGRAMS = local_programs(QUICK)
TEXT = np.random.default_rng(0).integers(0, 50, 60).tolist()


def session(prompts: list[list[int]], new: int = 12, **options: Any) -> Session:
    out = Session(MODEL.spec, MODEL.params, prompts, max_new_tokens=new, programs=PROGRAMS, **options)
    out.advance()
    return out


@pytest.fixture(scope="module")
def held() -> Held:
    return session([TEXT[:41]], 0, cache_dtype="int8").held()


def test_a_held_text_is_not_read_again_and_another_session_goes_on_with_it(held: Held, tmp_path: Path):
    assert held.texts == (tuple(TEXT[:40]),)  # the last token of a prompt is pending
    prompts = [TEXT[:45], [*TEXT[:40], 7]]
    expected = session(prompts, cache_dtype="int8").ids()
    prompt_cache.save(tmp_path / "a.cache", MODEL, held, cache_dtype="int8")
    for kept in (held, prompt_cache.load(tmp_path / "a.cache", MODEL), fork(held, 2)):
        begun = session(prompts, cache_dtype="int8", held=kept)
        assert begun.ids() == expected
        assert begun.held().texts[1] == (*TEXT[:40], 7, *expected[1][:-1])


DEEP = model(OPS[1:] * 2)  # equal layers, to be stacked
GREEDY = SamplingParams(temperature=0, logprobs=0)
LAYOUTS: dict[str, tuple[Any, Any]] = {
    "dense": (DEEP.params, "dense"),
    "paged": (DEEP.params, "paged"),
    "stacked": (stack(DEEP.spec, DEEP.params), "dense"),
}
MODELS = {layout: replace(DEEP, params=params) for layout, (params, _) in LAYOUTS.items()}


def deep(layout: str, prompts: list[list[int]], **options: Any) -> Session:
    params, kind = LAYOUTS[layout]
    options = {"max_new_tokens": 12, "sampling": GREEDY, "programs": PROGRAMS, **options}
    out = Session(DEEP.spec, params, prompts, layout=kind, **options)
    out.advance()
    return out


def test_stacked_layers_hold_the_same_bits():
    options = {"slack": BURST, "dtype": caches.policy("int8")}
    empty, numbers = caches.init(DEEP.spec, 1, 64, **options), iter(range(1, 99))
    filled = replace(empty, layers=jax.tree.map(lambda part: jnp.full_like(part, next(numbers)), empty.layers))
    order = jnp.arange(60)[None]
    slots = {key: caches.assign(places, order, jnp.zeros_like(order)).after for key, places in empty.places.items()}
    layout = Stacked(DEEP.spec, caches.init, options)
    begun = layout.begun(replace(filled, places=slots), [TEXT], 64)
    assert begun.stacked
    assert same(layout.left(begun, 1, 64), replace(filled, places=slots))


@pytest.mark.slow
@pytest.mark.parametrize("codec", [None, "int8", "int4"])
def test_a_text_goes_from_one_layout_to_the_next(codec: str | None, tmp_path: Path):
    """The window's ring has turned, and is of another size in pages; two rows go on from one."""
    prompt, path = TEXT[:45], tmp_path / "a.cache"
    plain = deep("dense", [prompt] * 2, max_new_tokens=36, cache_dtype=codec).outputs()[0]
    held, read = None, prompt
    assert plain.logprobs is not None
    for at, layout in enumerate(("stacked", "paged", "stacked", "dense")):
        begun = deep(layout, [read, [*read[:-1], 5]], max_new_tokens=9, cache_dtype=codec, held=held)
        output = begun.outputs()[0]
        assert output.ids == plain.ids[9 * at : 9 * at + 9]
        assert output.logprobs is not None
        if codec is None:
            np.testing.assert_allclose(output.logprobs, plain.logprobs[9 * at : 9 * at + 9], rtol=0, atol=1e-5)
        held = begun.held()
        assert begun.held().texts[0] == (*read, *output.ids[:-1])
        first = replace(held, cache=first_row(held.cache), texts=held.texts[:1])
        prompt_cache.save(path, MODELS[layout], first, codec)
        held, read = prompt_cache.load(path, DEEP), [*read, *output.ids]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["dense", "paged"])
def test_meshes_go_on_from_one_device_and_back(layout: Any, tmp_path: Path):
    mesh, path = make_mesh(2), tmp_path / "a.cache"
    split = replace(MODEL, params=shard(MODEL.spec, MODEL.params, mesh), mesh=mesh)
    runs = {"programs": programs(mesh), "layout": layout}
    plain = session([TEXT[:45]], 18).ids()[0]
    begun = Session(MODEL.spec, split.params, [TEXT[:45]], max_new_tokens=9, **runs)
    begun.advance()
    assert begun.ids()[0] == plain[:9]
    prompt_cache.save(path, split, begun.held())
    for held in (begun.held(), prompt_cache.load(path, MODEL)):
        assert session([TEXT[:45] + plain[:9]], 9, held=held).ids()[0] == plain[9:]
    again = Session(
        MODEL.spec, split.params, [TEXT[:45] + plain[:9]], max_new_tokens=9, held=prompt_cache.load(path, split), **runs
    )
    again.advance()
    assert again.ids()[0] == plain[9:]
    four = make_mesh(4)  # of two kv heads
    runs = {"programs": programs(four), "layout": layout}
    odd = Session(MODEL.spec, shard(MODEL.spec, MODEL.params, four), [TEXT[:45]], max_new_tokens=0, **runs).held()
    with pytest.raises(ValueError, match="heads are not split evenly"):
        prompt_cache.save(path, MODEL, odd)
    with pytest.raises(ValueError, match="or by other devices, than this session keeps it"):
        session([TEXT], held=odd)


def first_row(cache: Cache) -> Cache:
    """The cache of the first of several rows."""
    return jax.tree.map(lambda leaf: leaf[:1], cache)


@pytest.mark.slow
def test_pages_are_shared_again(held: Held):
    begun = session([[*TEXT[:40], i] for i in range(3)], 2, cache_dtype="int8", held=held, layout="paged")
    table = np.asarray(begun.state.cache.places["full"].table_BQ)
    assert (table[:, :2] == table[0, :2]).all()
    assert len(set(table[:, 2].tolist())) == 3


@pytest.mark.slow
def test_drafts_go_on_from_what_was_read_without(held: Held):
    """Their rings are larger than those of what is held."""
    prompt = [*TEXT[:40], 3]
    options: Any = {"cache_dtype": "int8", "draft": Lookup(tokens=8, shortest=1), "draft_always": True}
    assert session([prompt], 60, held=held, **options).ids() == session([prompt], 60, cache_dtype="int8").ids()
    left = session([prompt], 20, **options).held()
    longer = [*left.texts[0], 4]
    assert session([longer], cache_dtype="int8", held=left).ids() == session([longer], cache_dtype="int8").ids()


@pytest.mark.slow
def test_a_trimmed_text_is_the_shorter_text(held: Held):
    shorter = trim(MODEL.spec, held, [33])  # in the window's ring, 32 more than it looks back on are kept
    prompt = [*TEXT[:33], 1, 2]
    assert (
        session([prompt] * 2, cache_dtype="int8", held=shorter).ids() == session([prompt] * 2, cache_dtype="int8").ids()
    )
    with pytest.raises(ValueError, match=r"lengths \[41\] for texts of \[40\] tokens"):
        trim(MODEL.spec, held, [41])


@pytest.mark.slow
def test_a_prompt_that_is_held_whole_is_looked_at_again(held: Held):
    prompt = [TEXT[:40]] * 2
    assert session(prompt, cache_dtype="int8", held=held).ids() == session(prompt, cache_dtype="int8").ids()


@pytest.mark.parametrize(
    ("prompts", "options", "said"),
    [
        ([[*TEXT[:30], 1, 2]], {"cache_dtype": "int8"}, "prompt 0 is not what is held from token 30 on"),
        ([TEXT[:20]], {"cache_dtype": "int8"}, "prompt 0 is not what is held from token 20 on"),
        ([TEXT], {}, "kept by other codecs"),
    ],
)
def test_what_does_not_go_on_from_it_is_an_error(held: Held, prompts: list[list[int]], options: Any, said: str):
    with pytest.raises(ValueError, match=said):
        session(prompts, held=held, **options)


@pytest.mark.slow
def test_running_states_are_held_but_not_trimmed():
    hybrid = model((ATTENTION, ShortConv(32, 3)))
    options: Any = {"programs": PROGRAMS}
    whole = Session(hybrid.spec, hybrid.params, [TEXT[:30]], max_new_tokens=0, **options)
    held = whole.held()
    prompt = TEXT[:35]
    plain, begun = (
        Session(hybrid.spec, hybrid.params, [prompt], max_new_tokens=8, held=each, **options) for each in (None, held)
    )
    plain.advance()
    begun.advance()
    assert begun.ids() == plain.ids()
    with pytest.raises(ValueError, match="keeps running states"):
        trim(hybrid.spec, held, [3])


# ------------------------------------------------------------------------------------------------ files
def test_a_file_of_another_model_or_codec_is_refused(held: Held, tmp_path: Path):
    path = tmp_path / "a.cache"
    with pytest.raises(ValueError, match="not kept as cache_dtype=None says"):
        prompt_cache.save(path, MODEL, held)
    assert not path.exists()
    prompt_cache.save(path, MODEL, held, cache_dtype="int8")
    with pytest.raises(ValueError, match="model with another weights"):
        prompt_cache.load(path, model(seed=1))
    with pytest.raises(ValueError, match="model with another spec"):
        prompt_cache.load(path, replace(MODEL, spec=replace(MODEL.spec, logit_scale=2.0)))
    with pytest.raises(FileNotFoundError):
        prompt_cache.load(tmp_path / "b.cache", MODEL)


def changed(path: Path, facts: dict[str, Any], drop: str = "", **arrays: np.ndarray) -> Path:
    """The file with other facts and arrays."""
    source = open_safetensors(path)
    held = {name: source.read(name) for name in source.tensors if name != drop} | arrays
    said = dict(source.metadata)
    said["cache"] = json.dumps(json.loads(said["cache"]) | facts)
    kinds = {name: info.dtype for name, info in source.tensors.items()}
    source.close()
    entries = [Entry(name, a.shape, kinds.get(name, "I32"), lambda a=a: a) for name, a in held.items()]
    write_safetensors(path, entries, said)
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"facts": {"length": 0}}, "expected a length and the rules"),
        ({"facts": {"length": 300}}, "not those of such a cache"),
        ({"facts": {"rules": [["*", "int7"]]}}, "no codec 'int7'"),
        ({"facts": {"rules": [["*", "fp8"]]}}, "not those of such a cache"),
        ({"facts": {}, "drop": "lengths"}, "lengths is missing"),
        ({"facts": {}, "lengths": np.array([41], np.int32)}, "not ids of this model"),
        ({"facts": {}, "texts": np.full(40, 50, np.int32)}, "not ids of this model"),
        ({"facts": {}, "more": np.zeros(1, np.int32)}, "not those of such a cache"),
    ],
)
def test_a_damaged_file_is_refused(held: Held, tmp_path: Path, change: dict[str, Any], said: str):
    prompt_cache.save(tmp_path / "a.cache", MODEL, held, cache_dtype="int8")
    path = changed(tmp_path / "a.cache", **change)
    with pytest.raises(ValueError, match=said):
        prompt_cache.load(path, MODEL)


def test_a_safetensors_file_that_is_no_cache_is_refused(tmp_path: Path):
    write_safetensors(tmp_path / "a.safetensors", [], {"format": "pt"})
    with pytest.raises(ValueError, match="no forge-jax prompt cache 1; it says format 'pt'"):
        prompt_cache.load(tmp_path / "a.safetensors", MODEL)
