"""Every architecture and every variant of its config, against the goldens that the reference made.

The weights are a function of their names, so neither torch nor a file of weights is needed. Of all variants the files
and configs are checked; the logits of each family, of each way that layers are built, and of every fourth of the
others; through caches, and padded, every kind of branch. `-m slow` takes all of everything. Several devices: see
test_sharded.py.
"""

import functools
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import GOLDENS, TOKENS, VOCABULARY, Golden, read_golden
from liveness import IDLE, Reader, changed, changes
from quick import QUICK

from converters.architectures import find
from converters.take import Take
from forge_jax import cache as caches
from forge_jax.decoder import Inputs, forward, inputs
from forge_jax.params import Tree, flatten, unflatten
from forge_jax.spec import Attention, Latent, ModelSpec

# Variants whose layers are built, or look back, in a way that the plainest of their family does not show.
SPECIAL = (
    "falcon_new_alibi",
    "gemma3_bare",
    "gpt_neo_mixed",
    "hunyuan_v1_dense_dynamic",
    "llama_dynamic",
    "llama_one_kv_head",
    "minicpm3_longrope",
    "opt_narrow_after",
    "phi3_longrope",
    "qwen2_windows",
    "smollm3_interval",
    "stablelm_qk_norm",
)
TIED = ("bloom", "gemma", "gpt2", "llama_tied_gelu", "opt")
TOLERANCE = 1e-5  # of the largest logit: float32 sums in another order
NAMES = sorted(path.stem for path in GOLDENS.glob("*.npz"))


@functools.cache
def load(name: str) -> Golden:
    """Read a golden once; they hold 0.2 MB each."""
    return read_golden(name)


def families() -> list[str]:
    """The first golden of each model type, its plainest."""
    first: dict[str, str] = {}
    for name in NAMES:
        first.setdefault(load(name).config["model_type"], name)
    return list(first.values())


# Fields that change how calls, padding, caches and devices go together, not only what is computed of one token.
WIRING = frozenset(
    """
    alibi beside blocks branches chunk indexer late latent op parallel publish qk_norm_over reads residual
    scale_input shared sinks streams values window
    """.split()
)


def options(value: Any) -> Any:
    """How a part of a spec is wired, whatever its numbers."""
    if not is_dataclass(value):
        return tuple(map(options, value)) if isinstance(value, tuple) else None
    changed = [f for f in fields(value) if getattr(value, f.name) != f.default and f.name in WIRING]
    return type(value).__name__, tuple((f.name, options(getattr(value, f.name))) for f in changed)


@functools.cache
def wired(name: str) -> ModelSpec:
    """The spec of a golden, from its config alone."""
    config = load(name).config
    return find(config["model_type"], name).config(Take(config, name))


@functools.cache
def distinct() -> frozenset[str]:
    """The plainest golden of every way that layers are built; families that differ in numbers and names share one."""
    first: dict[Any, str] = {}
    for name in (*SPECIAL, *families()):
        first.setdefault(frozenset(map(options, wired(name).layers)), name)
    return frozenset(first.values())


@functools.cache
def few() -> frozenset[str]:
    """Few of these that have every kind of branch between them."""
    of = {
        name: {options(branch) for block in wired(name).layers for branch in block.every()}
        for name in sorted(distinct())
    }
    missing, chosen = set[Any]().union(*of.values()), set[str]()
    while missing:
        best = max(of, key=lambda name: (len(of[name] & missing), -len(wired(name).layers), name))
        chosen.add(best)
        missing -= of[best]
    return frozenset(chosen)


def ordinary(names: Iterable[str], kept: Container[str]) -> list[Any]:
    """Names of which those that are not kept are only run in the long sweep."""
    return [pytest.param(name, marks=() if name in kept else pytest.mark.slow) for name in names]


def plainest_and_some() -> frozenset[str]:
    """The plainest of each family, each way that layers are built, and every fourth of the other variants."""
    kept = {*families(), *distinct()}
    return frozenset({*kept, *[name for name in NAMES if name not in kept][::4]})


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each golden in turn."""
    return load(request.param)


# of the module: tests of one golden follow each other, and share what is compiled
@pytest.fixture(params=ordinary(NAMES, few()), scope="module")
def structure(request: pytest.FixtureRequest) -> Golden:
    """Goldens that have every kind of branch between them."""
    return load(request.param)


@pytest.fixture(params=ordinary(NAMES, distinct()))
def plain(request: pytest.FixtureRequest) -> Golden:
    """A golden of each way that layers are built; their configs are changed key by key."""
    return load(request.param)


def attentions(spec: ModelSpec) -> Iterator[Attention | Latent]:
    """Every attention of a model."""
    ops = (branch.op for block in spec.layers for branch in block.every())
    return (op for op in ops if isinstance(op, Attention | Latent))


def length_of(golden: Golden) -> int:
    """How many tokens to run where calls of different lengths are compared: beyond 16, some ropes turn otherwise."""
    return 16 if any(op.rope is not None and op.rope.varies for op in attentions(golden.spec)) else 24


# compiled as quickly as can be, which is sooner than op by op
loop = jax.jit(forward, static_argnums=0, compiler_options=QUICK)
scan = jax.jit(functools.partial(forward, driver="scan"), static_argnums=0, compiler_options=QUICK)


def logits_of(spec: ModelSpec, params: Tree, tokens: np.ndarray) -> np.ndarray:
    """Logits without a cache."""
    return np.asarray(loop(spec, params, inputs(jnp.asarray(tokens)))[0])


# beside the plain pass in float64 (states in float32) a text cut into calls is 3e-6 (bare) and 6e-6 away; in float32
# the plain pass and the cut ones are 3e-6 and 14e-6 (bare), 5e-6 and 6e-6 away, each on its own side
ROUNDED = {"zamba2_bare": 2.0, "zamba2": 1.2}


def assert_close(found: Any, expected: np.ndarray, times: float = 1.0) -> None:
    """Compare, relative to the largest value expected."""
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=times * TOLERANCE * float(np.abs(expected).max()))


# ------------------------------------------------------------------------------------------------ numbers
@pytest.mark.parametrize("name", ordinary(NAMES, plainest_and_some()))
def test_logits_are_the_reference(name: str) -> None:
    golden = load(name)
    logits = logits_of(golden.spec, golden.params, golden.tokens)
    assert_close(logits[:, list(TOKENS), VOCABULARY], golden.logits)


def test_cached_in_chunks_and_compiled_is_plain(structure: Golden) -> None:
    # 10 tokens at a time: more than a window and its ring of 8 slots hold; the last call is filled up with padding
    length = length_of(structure)
    tokens = structure.tokens[:, :length]
    cache = caches.init(structure.spec, 2, length)
    found = []
    for start in range(0, length, 10):
        order = np.arange(start, start + 10, dtype=np.int32)
        call = Inputs(
            jnp.asarray(np.take(tokens, order, axis=1, mode="clip")),
            jnp.asarray(np.broadcast_to(np.where(order < length, order, -1), (2, 10))),
        )
        logits, cache = scan(structure.spec, structure.params, call, cache)
        found.append(np.asarray(logits))
    found, expected = np.concatenate(found, 1)[:, :length], logits_of(structure.spec, structure.params, tokens)
    assert_close(found, expected, ROUNDED.get(structure.name, 1.0))


@pytest.mark.parametrize("name", ["gemma2_layer_types", "gpt_neo_mixed", "llama"])
def test_scan_without_a_cache_is_the_loop(name: str) -> None:
    golden = load(name)
    found, _ = scan(golden.spec, golden.params, inputs(golden.tokens), None)
    assert_close(found, logits_of(golden.spec, golden.params, golden.tokens))


def test_padded_rows_are_the_rows_alone(structure: Golden) -> None:
    # one row padded on the left, one on the right; both then go on by a token from the cache
    length = length_of(structure)
    tokens, kept = structure.tokens[:, :length], (length - 4, length - 7)
    expected = logits_of(structure.spec, structure.params, tokens)
    order = np.full((2, length), -1, np.int32)
    padded = np.full((2, length), 7, np.int32)
    for row, at in enumerate((slice(4, None), slice(None, kept[1]))):
        order[row, at] = np.arange(kept[row])
        padded[row, at] = tokens[row, : kept[row]]
    cache = caches.init(structure.spec, 2, length)
    prompt = Inputs(jnp.asarray(padded), jnp.asarray(order))
    logits, cache = loop(structure.spec, structure.params, prompt, cache)
    for row in range(2):
        assert_close(np.asarray(logits)[row, order[row] >= 0], expected[row, : kept[row]])
    more = Inputs(
        jnp.asarray([[tokens[row, kept[row]]] for row in range(2)]), jnp.asarray(kept, dtype=jnp.int32)[:, None]
    )
    logits, _ = loop(structure.spec, structure.params, more, cache)
    assert_close(np.asarray(logits)[:, 0], np.stack([expected[row, kept[row]] for row in range(2)]))


# ------------------------------------------------------------------------------------------------ files
def test_round_trip_is_bitwise(golden: Golden) -> None:
    written = golden.written()
    assert set(written) == golden.to_write()
    for name, array in written.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, golden.arrays[name], strict=True, err_msg=name)


@pytest.mark.parametrize("name", families())
def test_a_tensor_that_is_missing_extra_or_misshapen_is_named(name: str) -> None:
    golden = load(name)
    victim = list(golden.shapes)[-1]
    without = {key: array for key, array in golden.arrays.items() if key != victim}
    with pytest.raises(ValueError, match=rf"{victim} is missing"):
        golden.understood(arrays=without)
    with pytest.raises(ValueError, match=r"surplus\.weight .* is used by nothing"):
        golden.understood(arrays=golden.arrays | {"surplus.weight": np.zeros((2, 3), np.float32)})
    with pytest.raises(ValueError, match=rf"{victim} is \[3, 5, 7\], the config asks"):
        golden.understood(arrays=golden.arrays | {victim: np.zeros((3, 5, 7), np.float32)})


@pytest.mark.parametrize("name", families())
def test_names_without_the_prefix_of_the_bare_model_are_read(name: str) -> None:
    golden = load(name)
    prefix = find(golden.config["model_type"], name).prefix
    bare = {key.removeprefix(prefix): array for key, array in golden.arrays.items()}
    assert set(bare) != set(golden.arrays)
    tree = golden.understood(arrays=bare).read(lambda _, values: values)
    for (path, found), (_, expected) in zip(flatten(tree), flatten(golden.params), strict=True):
        np.testing.assert_array_equal(found, np.asarray(expected), err_msg=path)


@pytest.mark.parametrize("name", TIED)
def test_a_copy_of_a_tied_head_must_be_a_copy(name: str) -> None:
    golden = load(name)
    family = find(golden.config["model_type"], name)
    head = next(rule.theirs for rule in family.rules if rule.ours == "head")
    embed = next(instance.theirs for instance in golden.checkpoint.found if "embed" in instance.paths)
    read: Callable[[np.ndarray], Tree] = lambda array: golden.understood(  # noqa: E731
        arrays=golden.arrays | {head: array}
    ).read(lambda _, values: values)
    read(golden.arrays[embed])
    with pytest.raises(ValueError, match=rf"{head} differs from {embed}"):
        read(golden.arrays[embed] + 1)


@pytest.mark.parametrize("name", families())
def test_an_unread_config_key_is_named(name: str) -> None:
    golden = load(name)
    with pytest.raises(ValueError, match=r"mystery_factor=0\.5.*allow=\{'mystery_factor'\}"):
        golden.understood(golden.config | {"mystery_factor": 0.5})
    rope = golden.config.get("rope_parameters")
    if rope is not None and "rope_type" in rope:
        with pytest.raises(ValueError, match=r"rope_parameters: .*mystery_factor"):
            golden.understood(golden.config | {"rope_parameters": rope | {"mystery_factor": 0.5}})


# ------------------------------------------------------------------------------------------------ liveness
def test_every_config_key_changes_the_model(plain: Golden) -> None:
    assert not (dead := without_effect(plain, lambda spec, params: False)), f"{plain.name}: read in vain: {dead}"


@pytest.mark.slow
def test_every_config_key_moves_the_logits(plain: Golden) -> None:
    before = logits_of(plain.spec, plain.params, plain.tokens)
    dead = without_effect(plain, lambda *other: np.array_equal(logits_of(*other, plain.tokens), before))
    assert not dead, f"{plain.name}: read, and without effect: {dead}"


def without_effect(plain: Golden, same: Callable[[ModelSpec, Tree], bool]) -> list[str]:
    """The settings of a config that are read and whose change leaves the spec as it is, or is the `same` in effect."""
    take = Reader(plain.config, plain.name)
    find(plain.config["model_type"], plain.name).config(take)
    dead: list[str] = []
    for path, value in changes(plain.config):
        if path[0] not in take.seen or any(idle.covers(plain, path) for idle in IDLE):
            continue
        try:
            other = plain.understood(changed(plain.config, path, value))
            params = other.read(lambda _, values: jnp.asarray(values))  # the same tensors, perhaps cut otherwise
        except ValueError:
            continue  # seen: it asks for other tensors, or for what cannot be
        if other.spec == plain.spec or same(other.spec, params):
            dead.append(f"{'.'.join(path)} = {value!r}")
    return dead


def changed_leaf(leaf: jax.Array) -> jax.Array:
    """Every number times another: one factor for all would leave a choice of the best as it is."""
    return leaf * jnp.linspace(0.4, 1.6, leaf.size, dtype=leaf.dtype).reshape(leaf.shape)


def test_every_parameter_moves_the_logits(structure: Golden) -> None:
    leaves = dict(flatten(structure.params))
    before = logits_of(structure.spec, structure.params, structure.tokens)
    last = f"layers.{len(structure.spec.layers) - 1}."
    dead = [
        path
        for path, leaf in leaves.items()
        if path.startswith(last) or not path.startswith("layers.")
        if np.array_equal(
            logits_of(structure.spec, unflatten(leaves | {path: changed_leaf(leaf)}), structure.tokens), before
        )
    ]
    assert not dead, f"{structure.name}: without effect: {dead}"
