"""EAGLE-3 heads: both dialects against the formulas of the paper, and texts against plain generation."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eagle_files import CONFIGS, KNOWN, NATIVE, NESTED, Tensors, oracle, tensors, written
from test_speculation import (
    HYBRID,
    PROMPTS,
    RINGS,
    SAMPLERS,
    SMALL,
    TOY,
    VOCABULARY,
    assert_law,
    attending,
    drafted,
    model,
    numbers,
    two_turns,
)

from forge_jax import SamplingParams, Session, inputs, load_drafter, parallel, stack
from forge_jax.cli import options
from forge_jax.decoder import hidden
from forge_jax.forge_drafts import ForgeDrafts
from forge_jax.generation.speculation import EagleHead, Target
from forge_jax.generation.speculation.protocol import Fed
from forge_jax.loading import Model
from forge_jax.ops import Context
from forge_jax.params import Tree
from forge_jax.quantization import quantize
from forge_jax.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("quick_compiles")


def loaded(path: Path, config: dict[str, Any], target: Model, arrays: Tensors | None = None) -> EagleHead:
    head = load_drafter(written(path, config, tensors(config) if arrays is None else arrays), target, tokens=3)
    assert isinstance(head, EagleHead)
    return head


DEEP = model(*(attending(None),) * 6)
TARGET = Model(DEEP, numbers(DEEP), None, {})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_head_computes_its_formula(name: str, tmp_path: Path) -> None:
    """What follows a text that it learned in two pieces, one of them padded, and then what it drafts from itself."""
    config = CONFIGS[name]
    head = loaded(tmp_path / "head", config, TARGET)
    assert head.taps == ((1, 3, 5) if "native" in name else (0, 2, 5))
    tokens, taps = [4, 9, 1, 30, 17, 8], np.random.default_rng(0).normal(size=(5, 3, 16)).astype(np.float32)
    wanted, drafts = oracle(config, tensors(config), np.asarray(TARGET.params["embed"]), taps, tokens, 3)
    target, memory = Target(DEEP, TARGET.params, Context()), head.memory(DEEP, 1, 32, jnp.float32)
    learn = jax.jit(lambda memory, fed: head.learn(target, memory, fed))
    for orders in ([0, 1, -1], [2, 3, 4]):
        flat = jnp.asarray(taps[orders].reshape(1, 3, 48))
        fed = Fed(flat, flat, jnp.asarray([np.array(tokens)[orders]], jnp.int32), jnp.asarray([orders], jnp.int32))
        memory = learn(memory, fed)
    before, cache = memory[0].hidden_BD, memory[0].cache
    ids = KNOWN if "d2t" in tensors(config) else np.arange(VOCABULARY)

    @jax.jit
    def draft(before_BD: Any, token_BT: Any, place_BT: Any, cache: Any) -> Any:
        out_BTD, cache = head.through(0, target, before_BD[:, None], token_BT, place_BT, cache)
        return head.logits(target, out_BTD)[0, 0], out_BTD[:, 0], cache

    for step, token in enumerate([tokens[-1], *drafts[:-1]]):
        given = (np.array([[n]], np.int32) for n in (token, 4 + step))
        logits, before, cache = draft(before, *given, cache)
        np.testing.assert_allclose(logits[ids], wanted[step], atol=1e-5 * np.abs(wanted).max())
        assert np.isneginf(np.delete(logits, ids)).all()


def test_taps_are_the_streams_between_the_layers() -> None:
    """Those of a model that ends there, with padding before a running state, which wants it at the end."""
    spec = model(*HYBRID.layers, *HYBRID.layers)
    params, given = numbers(spec), inputs([[1, 2, 3], [4, 5, 6]])
    given = dataclasses.replace(given, order_BT=given.order_BT.at[0, 0].set(-1))
    parts = [hidden(dataclasses.replace(spec, layers=spec.layers[:depth]), params, given)[0] for depth in (4, 0, 3)]
    for driver in ("loop", "scan"):
        x_BTE = jax.jit(lambda given, driver=driver: hidden(spec, params, given, driver=driver, taps=(0, 3))[0])(given)
        np.testing.assert_allclose(x_BTE, np.concatenate(parts, -1), atol=1e-5)


# ------------------------------------------------------------------------------------------------ texts
GREEDY = {"sampling": SamplingParams(temperature=0), "max_new_tokens": [40, 33, 25, 12], "stop_ids": ()}
SHALLOW = NATIVE | {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [-1, 0]}, "draft_vocab_size": len(KNOWN)}


def faint(spec: ModelSpec) -> Tree:
    """A target whose layers add so little that what comes next is mostly a matter of the last token."""
    params = numbers(spec)
    for layer in params["layers"].values():
        for branch, name in (("attention", "o"), ("mlp", "down")):
            layer[branch][name] = layer[branch][name] * 0.02
    return params


def knowing(path: Path, spec: ModelSpec, params: Tree) -> EagleHead:
    """A head that was made good for a faint target: its layer hands on the normalised embedding of the last token."""
    layer = {"hidden_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}
    config = SHALLOW | layer | {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [-1]}, "draft_vocab_size": 30}
    arrays = {name: np.zeros_like(x) if x.dtype == np.float32 else x for name, x in tensors(config, taps=1).items()}
    half = np.concatenate([np.eye(16), np.zeros((16, 16))], 1).astype(np.float32)
    for name, size in (("q", 4), ("k", 4), ("v", 1)):  # a token is most like itself
        arrays[f"midlayer.self_attn.{name}_proj.weight"] = half * np.float32(size)
    arrays["midlayer.self_attn.o_proj.weight"] = np.eye(16, dtype=np.float32)
    arrays["midlayer.input_layernorm.weight"] = np.ones(16, np.float32)
    arrays["norm.weight"] = np.asarray(params["final_norm"]["scale"])
    arrays |= {"lm_head.weight": np.asarray(params["embed"])[:30], "d2t": np.zeros(30, int), "t2d": np.arange(37) < 30}
    del arrays["embed_tokens.weight"]
    return loaded(path, config, Model(spec, params, None, {}), arrays)


def test_texts_of_a_good_head(tmp_path: Path) -> None:
    """Greedy rows, of which some take more drafts than others, are what they are without; and drafts are accepted."""
    params = faint(SMALL)
    head = knowing(tmp_path / "head", SMALL, params)
    plain = Session(SMALL, params, PROMPTS, **GREEDY)
    ours = Session(SMALL, params, PROMPTS, draft=head, draft_always=True, **GREEDY)
    start = np.array(ours.lengths())
    given = (SMALL, ours.plan, params, head, ours.values, ours.state, np.int32(5), start + 60, np.bool_(True), ours.ctx)
    ours.state = ours.programs.speculate(*given)
    assert len({*(ours.lengths() - start)}) > 1
    ours.advance()
    plain.advance()
    assert ours.ids() == plain.ids()
    assert ours.speculation is not None
    assert ours.speculation.acceptance > 0.2


def drafting(name: str, path: Path, spec: ModelSpec, params: Tree) -> EagleHead:
    return loaded(
        path / "head",
        SHALLOW | {"norm_output": name == "normed"},
        Model(spec, params, None, {}),
        tensors(SHALLOW, taps=2),
    )


@pytest.mark.slow
@pytest.mark.parametrize("spec", [RINGS, HYBRID], ids=["rings", "hybrid"])
def test_every_sampler_gives_the_same_text(spec: ModelSpec, tmp_path: Path) -> None:
    """Ragged rows with every processor, records and stop ids; and, rewound, a second turn."""
    head = drafting("", tmp_path, spec, numbers(spec))
    two_turns(spec, head)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "normed"])
def test_drafts_in_the_middle_of_a_text(kind: str, tmp_path: Path) -> None:
    """They are the formula's after a prompt, and after rounds in which some were accepted and some were not."""
    params = faint(RINGS)
    head = drafting(kind, tmp_path, RINGS, params)
    config, arrays = SHALLOW | {"norm_output": kind == "normed"}, tensors(SHALLOW, taps=2)
    ours = Session(RINGS, params, PROMPTS, draft=head, draft_always=True, **GREEDY)
    for tokens, drafts in drafted(ours, head):
        x_BTE, _ = hidden(RINGS, params, inputs(np.array([tokens[:-1]])), taps=head.taps)
        taps = np.asarray(x_BTE)[0, :, 16:].reshape(-1, 2, 16)
        assert drafts == oracle(config, arrays, np.empty(0), taps, tokens, 3)[1]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["packed", "stacked", "bfloat16 cache", "paged", "mesh"])
def test_forms_of_parameters_and_caches(form: str, tmp_path: Path) -> None:
    params, given = numbers(RINGS), dict(GREEDY)
    head = drafting("", tmp_path, RINGS, params)
    if form == "packed":
        params = quantize(RINGS, params, "int8")
    if form == "stacked":
        params = stack(RINGS, params)
    if form == "bfloat16 cache":
        given["cache_dtype"] = "bfloat16"
    if form == "paged":
        given["layout"] = "paged"
    if form == "mesh":
        mesh = parallel.make_mesh(2)
        params, given["programs"] = parallel.shard(RINGS, params, mesh), parallel.programs(mesh)
    plain = Session(RINGS, params, PROMPTS, **given)
    ours = Session(RINGS, params, PROMPTS, draft=head, draft_always=True, **given)
    for each in (plain, ours):
        each.advance()
    assert ours.ids() == plain.ids()
    assert ours.speculation is not None
    assert ours.speculation.rounds > 0


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_texts_have_the_law_of_the_sampler(sampler: str, tmp_path: Path) -> None:
    """Chi-square over all texts of 3 tokens of a vocabulary of 5, of which the head knows 4."""
    config = SHALLOW | {"vocab_size": 5, "draft_vocab_size": 4, "target_hidden_size": 8}
    arrays = tensors(config, target=8, taps=2)
    arrays |= {"embed_tokens.weight": arrays["embed_tokens.weight"][:5], "d2t": np.array([0, 0, 1, 1])}
    arrays["t2d"] = np.array([True, True, False, True, True])
    head = loaded(tmp_path / "head", config, Model(TOY, numbers(TOY), None, {}), arrays)
    assert_law(dataclasses.replace(head, tokens=2), SAMPLERS[sampler], 8192, 25)


class Facade(ForgeDrafts):
    """The part of `Forge` that speculates."""

    model = TARGET

    def generate(self, input_ids: Any, max_new_tokens: int = 100, **options: Any) -> Any:
        """Nothing."""


def test_directories_are_recognised(tmp_path: Path) -> None:
    """By the facade and by the command line."""
    path = str(written(tmp_path / "head", NESTED, tensors(NESTED)))
    forge = Facade()
    forge.enable_speculative_decoding(path)
    assert isinstance(forge.draft, EagleHead)
    assert forge.draft.tokens == 4
    args = argparse.Namespace(draft=path, lookup=False, draft_tokens=2, dtype="auto")
    assert isinstance(drafter := options.drafter(args, forge.model), EagleHead)
    assert drafter.tokens == 2


# ------------------------------------------------------------------------------------------------ what does not fit
def without(name: str) -> Tensors:
    return {key: x for key, x in tensors(NATIVE).items() if key != name}


WRONG: dict[str, tuple[dict[str, Any], Tensors | None, str]] = {
    "width": (NATIVE | {"target_hidden_size": 24}, tensors(NATIVE, target=24), "3 streams of width 24, .* 16 wide"),
    "vocabulary": (NATIVE | {"vocab_size": 38}, None, r"embed_tokens.weight is \[37, 12\], the config asks \[38, 12\]"),
    "layers": (NATIVE | {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 5]}}, None, "0 to 5, the layers"),
    "order": (NATIVE | {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 0, 4]}}, None, "rising numbers"),
    "default": ({k: x for k, x in NATIVE.items() if k != "eagle_config"}, None, r"before the layers \[2, 3, 3\]"),
    "no list": (NESTED | {"eagle_aux_hidden_state_layer_ids": 3}, None, "expected a list of layer numbers"),
    "key": (NATIVE | {"logit_scale": 0.5}, None, "config keys are not understood .* logit_scale=0.5"),
    "last state": (NATIVE | {"eagle_config": {"use_aux_hidden_state": False}}, None, "use_aux_hidden_state = False"),
    "other method": (NESTED | {"speculators_config": {"algorithm": "dflash"}}, None, "algorithm = 'dflash'"),
    "drafter": (NESTED | {"speculators_model_type": "peagle"}, None, "speculators_model_type = 'peagle'"),
    "type": (NATIVE | {"norm_output": "no"}, None, "norm_output = 'no'; expected bool"),
    "two layers": (NATIVE | {"num_hidden_layers": 2}, None, "2 layers, or a layer of another kind"),
    "both norms": (NATIVE | {"fc_norm": True, "norm_before_fc": True}, None, "expected one of them"),
    "no map": (NATIVE, without("d2t"), "knows 17 of 37 ids; d2t is missing"),
    "no embedding": (
        NATIVE,
        without("embed_tokens.weight"),
        "no embedding of its own, and the model's is 16 wide, not 12",
    ),
    "no head": (NATIVE, without("lm_head.weight"), "lm_head.weight is missing"),
    "beyond": (NATIVE, tensors(NATIVE) | {"d2t": np.full(17, 30)}, "17 different ids below 37"),
    "twice": (NATIVE, tensors(NATIVE) | {"d2t": -np.arange(17)}, "17 different ids below 37"),
    "marks": (NATIVE, tensors(NATIVE) | {"t2d": np.ones(37, bool)}, "does not mark the 17 ids"),
    "odd": (NATIVE, tensors(NATIVE) | {"odd": np.ones(2, np.float32)}, r"odd \[2\] is used by nothing"),
    "nan": (NATIVE, tensors(NATIVE) | {"norm.weight": np.full(12, np.nan, np.float32)}, "final_norm.scale has NaN"),
}


@pytest.mark.parametrize("name", WRONG)
def test_heads_that_do_not_fit(name: str, tmp_path: Path) -> None:
    """The message says where and what."""
    config, arrays, message = WRONG[name]
    with pytest.raises(ValueError, match=rf"{tmp_path}/head.*{message}"):
        loaded(tmp_path / "head", config, TARGET, arrays)
