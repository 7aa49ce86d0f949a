"""Modules for multi-token prediction of checkpoints: every tensor in its place, and texts that stay the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Golden, read_golden, weight

from converters.heads import read_head
from forge_jax import MtpHead, SamplingParams, generate
from forge_jax.params import flatten

# the last layer that attends, whose shapes the module's has
CASES = {"deepseek_v3": 1, "glm4_moe": 1, "qwen3_next": 1}
BEHIND = {"join": "eh_proj", "embed_norm": "enorm", "hidden_norm": "hnorm", "final_norm": "shared_head.norm"}
APART = {"join": "fc", "embed_norm": "pre_fc_norm_embedding", "hidden_norm": "pre_fc_norm_hidden", "final_norm": "norm"}


def with_module(golden: Golden, name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, str]]:
    """The golden's tensors and a module's; the golden's with that layer as one of its own; the names of the ends."""
    count, dim = len(golden.spec.layers), golden.spec.dim
    apart = name.startswith("qwen")
    last, place = f"model.layers.{CASES[name]}.", "mtp.layers.0." if apart else f"model.layers.{count}."
    start = "mtp." if apart else place
    ends = {ours: f"{start}{theirs}.weight" for ours, theirs in (APART if apart else BEHIND).items()}
    layer = {n.removeprefix(last): x for n, x in golden.arrays.items() if n.startswith(last)}
    made = {n: weight(f"module {n}", x.shape) for n, x in layer.items()}
    module = {f"{place}{n}": x for n, x in made.items()}
    module |= {n: weight(n, (dim, 2 * dim) if ours == "join" else (dim,)) for ours, n in ends.items()}
    return golden.arrays | module, golden.arrays | {f"{last}{n}": x for n, x in made.items()}, ends


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_in_its_place(name: str) -> None:
    """The layer is what a model reads that has it as its last; the ends are the tensors themselves."""
    golden = read_golden(name)
    arrays, replaced, ends = with_module(golden, name)
    spec, (params,) = read_head(golden.understood(arrays=arrays), lambda _, values: values)
    whole = golden.understood(arrays=replaced).read(lambda _, values: values)
    last = dict(flatten(whole["layers"][str(CASES[name])]))
    ours = dict(flatten(params["layers"]["0"]))
    assert ours.keys() == last.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, last[path], path)
    assert spec.layers == golden.spec.layers[CASES[name] :][:1]
    np.testing.assert_array_equal(params["join"], arrays[ends["join"]].T)
    for norm in ("embed_norm", "hidden_norm", "final_norm"):
        np.testing.assert_array_equal(params[norm]["scale"], arrays[ends[norm]])


@pytest.mark.parametrize("name", CASES)
def test_several_modules(name: str) -> None:
    """Behind the last layer each is whole; apart, they share their ends."""
    golden = read_golden(name)
    arrays, _, ends = with_module(golden, name)
    apart, count = name.startswith("qwen"), len(golden.spec.layers)
    first, second = ("mtp.layers.0.", "mtp.layers.1.") if apart else (f"model.layers.{count + k}." for k in range(2))
    arrays |= {n.replace(first, second): x + 1 for n, x in arrays.items() if n.startswith(first)}
    _, modules = read_head(golden.understood(arrays=arrays), lambda _, values: values)
    one, other = (dict(flatten(module)) for module in modules)
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(other[path], leaf if apart and "layers" not in path else leaf + 1, path)
    np.testing.assert_array_equal(one["join"], arrays[ends["join"]].T)
    with pytest.raises(ValueError, match=r"odd \[3\] is used by nothing"):
        read_head(golden.understood(arrays=arrays | {f"{second}odd": np.zeros(3, np.float32)}), lambda _, x: x)


def test_a_module_that_is_not_whole() -> None:
    """Missing and superfluous tensors are named, and so is an embedding that is not the model's."""
    golden = read_golden("deepseek_v3")
    arrays, _, ends = with_module(golden, "deepseek_v3")
    place = ends["join"].removesuffix("eh_proj.weight")

    def read(changed: dict[str, Any]) -> None:
        read_head(golden.understood(arrays={n: x for n, x in changed.items() if x is not None}), lambda _, x: x)

    with pytest.raises(ValueError, match="no module that guesses further tokens was found"):
        read(golden.arrays)
    with pytest.raises(ValueError, match=r"1 tensors do not fit .*enorm.weight is missing"):
        read(arrays | {ends["embed_norm"]: None})
    with pytest.raises(ValueError, match=r"odd.weight \[3\] is used by nothing"):
        read(arrays | {f"{place}odd.weight": np.zeros(3, np.float32)})
    copy = f"{place}embed_tokens.weight"
    read(arrays | {copy: golden.arrays["model.embed_tokens.weight"]})
    with pytest.raises(ValueError, match=r"embed_tokens.weight differs from model.embed_tokens.weight"):
        read(arrays | {copy: golden.arrays["model.embed_tokens.weight"] + 1})


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_texts_stay_the_same(name: str) -> None:
    golden = read_golden(name)
    arrays, _, _ = with_module(golden, name)
    head = MtpHead(*read_head(golden.understood(arrays=arrays), lambda _, values: jnp.asarray(values)), tokens=3)
    rows = [golden.tokens[0][:9].tolist(), golden.tokens[1][:4].tolist()]
    options: dict[str, Any] = {"max_new_tokens": [20, 14], "sampling": SamplingParams(repetition_penalty=1.1, seed=3)}
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        plain = generate(golden.spec, golden.params, rows, **options)
        ours = generate(golden.spec, golden.params, rows, draft=head, draft_always=True, **options)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    assert [o.ids for o in ours] == [o.ids for o in plain]
