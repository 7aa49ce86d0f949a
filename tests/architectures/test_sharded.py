"""Every architecture on several devices: the logits of one device."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import Golden
from parallel_check import assert_sharded_equals_plain
from test_parity import SPECIAL, families, few, load, ordinary

from forge_jax.params import Tree, abstract, flatten, unflatten
from forge_jax.spec import ModelSpec


def on_the_host(golden: Golden) -> Tree:
    """Its parameters as numpy arrays, which are prepared without a compilation."""
    return golden.checkpoint.read(lambda _, values: values)


def one_layer_of_each_kind(spec: ModelSpec, params: Tree) -> tuple[ModelSpec, Tree]:
    """A shorter model with the same ops: layers that equal an earlier one are left out."""
    kept = [i for i, block in enumerate(spec.layers) if block not in spec.layers[:i]]
    layers = {str(new): params["layers"].get(str(old), {}) for new, old in enumerate(kept)}
    shorter = replace(spec, layers=tuple(spec.layers[i] for i in kept))
    rest = dict(flatten({key: value for key, value in params.items() if key != "layers"}))
    for path, param in flatten(abstract(shorter)):
        if "layers" in param.axes:  # one leaf has a share for every layer
            rest[path] = np.take(rest[path], kept, param.axes.index("layers"))
    return shorter, unflatten(rest) | {"layers": layers}


@pytest.mark.parametrize("name", ordinary(sorted({*families(), *few()}), few()))
def test_family(name: str) -> None:
    """Every kind of branch, in some family, on 4 devices: more than most have kv heads, so that some repeat."""
    golden = load(name)
    assert_sharded_equals_plain(*one_layer_of_each_kind(golden.spec, on_the_host(golden)), golden.tokens, 4)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [2, 4, 8])
@pytest.mark.parametrize("name", sorted({*families(), *SPECIAL}))
def test_structure(name: str, shards: int) -> None:
    """Every way that layers are built, all layers."""
    golden = load(name)
    assert_sharded_equals_plain(golden.spec, on_the_host(golden), golden.tokens, shards)
