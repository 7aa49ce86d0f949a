"""Adapted leaves against products with the weights that they stand for."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.lora import Adapter, Apart, Chosen, Lora, Tokens, Turned, Update, attach, choose_adapters, merge
from forge_jax.tensor import beside, contract, dense, pick, take

pytestmark = pytest.mark.usefixtures("quick_compiles")

close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), jnp.float32)


def update(leading: tuple[int, ...], trailing: tuple[int, ...], seed: int, **parts: Any) -> Lora:
    return Lora(
        normal(*leading, *trailing), normal(*leading, 3, seed=seed), normal(3, *trailing, seed=seed + 1), **parts
    )


@pytest.mark.parametrize(("eq", "x"), [("BTD,DNH->BTNH", (2, 3, 6)), ("BTNH,NHD->BTD", (2, 3, 4, 5))])
def test_a_gain_and_a_bias_belong_to_the_outputs(eq: str, x: tuple[int, ...]):
    leading, trailing = ((6,), (4, 5)) if "DNH" in eq else ((4, 5), (6,))
    leaf = update(leading, trailing, 1, gain=normal(*trailing, seed=5), bias=normal(*trailing, seed=6))
    whole = np.asarray(leaf.base + np.tensordot(leaf.a, leaf.b, 1)) * np.asarray(leaf.gain)
    close(contract(eq, normal(*x), leaf), np.einsum(eq, normal(*x), whole) + np.asarray(leaf.bias))
    with pytest.raises(ValueError, match="a merged weight has no place for"):
        leaf.dense()


EXPERTS = {"ND,EDF->NEF": (7, 4), "NED,EDF->NEF": (7, 2, 4), "NEF,EFD->ND": (7, 2, 4)}


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("eq", EXPERTS)
def test_updates_of_stacked_weights(eq: str, gain: bool):
    leaf = Lora(normal(2, 4, 5), normal(2, 4, 3, seed=1), normal(2, 3, 5, seed=2), stacked=1)
    leaf = Lora(leaf.base, leaf.a, leaf.b, normal(2, 5, seed=3), stacked=1) if gain else leaf
    whole = leaf.base + np.einsum("eir,ero->eio", leaf.a, leaf.b)
    whole = whole * (np.asarray(leaf.gain)[:, None] if gain else 1)
    x = normal(*EXPERTS[eq])
    close(contract(eq, x, leaf), np.einsum(eq, x, whole))
    close(dense(pick(leaf, jnp.asarray(1))), whole[1])
    close(take(leaf, jnp.asarray([1, 1, 0])), whole[np.array([1, 1, 0])])


def rows(leading: tuple[int, ...], trailing: tuple[int, ...]) -> tuple[Lora, np.ndarray]:
    """A weight with two adapters among which the rows 1, none, 0 choose, and the weight of each row."""
    a, b, gain = normal(3, *leading, 2), normal(3, 2, *trailing, seed=1), normal(3, *trailing, seed=2)
    leaf = Lora(
        normal(*leading, *trailing, seed=3),
        a.at[-1].set(0),
        b.at[-1].set(0),
        gain.at[-1].set(1),
        row_B=jnp.asarray([1, -1, 0]),
    )
    whole = [
        np.asarray(leaf.base + np.tensordot(leaf.a[i], leaf.b[i], 1)) * np.asarray(leaf.gain[i]) for i in (1, 2, 0)
    ]
    return leaf, np.stack(whole)


def test_each_row_has_its_own_update():
    leaf, whole = rows((6,), (4, 5))
    x = normal(3, 2, 6)
    close(contract("BTD,DNH->BTNH", x, leaf), np.einsum("BTD,BDNH->BTNH", x, whole))
    table, whole = rows((7,), (4,))
    ids = np.array([[0, 6], [3, 3], [5, 1]])
    close(take(table, jnp.asarray(ids)), np.stack([rows_[i] for rows_, i in zip(whole, ids, strict=True)]))
    for call in (lambda: contract("MD,DF->MF", x[0], table), table.dense, lambda: pick(table, jnp.asarray(0))):
        with pytest.raises(ValueError, match="adapters by row"):
            call()


def test_each_row_has_its_own_parameter():
    options = normal(2, 4), normal(2, 4, seed=1)
    leaf = Chosen(options, jnp.asarray([1, 0, 0]), jnp.asarray([0, -1, 1]))
    picked = np.stack([options[1], options[0], options[0]])
    close(contract("BTD,DF->BTF", normal(3, 5, 2), leaf), np.einsum("BTD,BDF->BTF", normal(3, 5, 2), picked))
    close(take(leaf, jnp.asarray([[0], [1], [1]])), picked[np.arange(3), [0, 1, 1]][:, None])
    bias = Chosen((normal(4), normal(4, seed=1)), leaf.table, leaf.row_B)
    assert beside(bias, 3, jnp.float32).shape == (3, 1, 4)
    close(beside(bias, 3, jnp.float32)[:, 0], np.stack([normal(4, seed=1), normal(4), normal(4)]))
    with pytest.raises(ValueError, match=r"a parameter of shape \[4\] differs from row to row"):
        bias.astype(jnp.float32)


def test_a_tied_embedding_is_adapted_apart():
    params = {"embed": normal(7, 4)}
    change = Adapter({"head": Update(normal(4, 2), normal(2, 7), scale=0.5)}, {}, {})
    leaf = attach(params, change)["embed"]
    assert isinstance(leaf, Apart)
    assert isinstance(leaf.head.base, Turned)
    head = np.asarray(params["embed"]).T + 0.5 * np.asarray(normal(4, 2)) @ np.asarray(normal(2, 7))
    close(take(leaf, jnp.asarray([3])), params["embed"][3:4])
    close(contract("BTD,VD->BTV", normal(2, 3, 4), leaf), np.asarray(normal(2, 3, 4)) @ head)
    merged = merge({"embed": leaf})["embed"]
    close(contract("BTD,VD->BTV", normal(2, 3, 4), merged), np.asarray(normal(2, 3, 4)) @ head)
    with pytest.raises(ValueError, match="untie the head first"):
        leaf.dense()


def test_replaced_rows_are_an_update():
    params = {"embed": normal(7, 4), "head": normal(4, 7, seed=1)}
    tokens = {
        "embed": Tokens(np.array([2, 5]), normal(2, 4, seed=2)),
        "head": Tokens(np.array([0]), normal(1, 4, seed=3)),
    }
    found = merge(attach(params, Adapter({}, {}, tokens)))
    wanted, head = np.array(params["embed"]), np.array(params["head"])
    wanted[[2, 5]], head[:, 0] = tokens["embed"].rows, tokens["head"].rows[0]
    np.testing.assert_array_equal(found["embed"], wanted)
    np.testing.assert_array_equal(found["head"], head)
    ids, x = np.array([[2, 3, 5]]), normal(1, 3, 4, seed=4)
    for adapters, row in (([Adapter({}, {}, tokens)], 0), ([Adapter(), Adapter({}, {}, tokens)], 1)):
        params_ = attach(params, adapters[0] if row == 0 else adapters)
        params_ = choose_adapters(params_, [1, -1]) if row else params_
        both, twice = np.repeat(ids, row + 1, 0), jnp.repeat(x, row + 1, 0)
        np.testing.assert_array_equal(take(params_["embed"], jnp.asarray(both))[0], wanted[ids[0]])
        close(contract("BTD,DV->BTV", twice, params_["head"])[0], np.asarray(x[0]) @ head)
    np.testing.assert_array_equal(take(params_["embed"], jnp.asarray(both))[1], params["embed"][ids[0]])
    np.testing.assert_array_equal(
        contract("BTD,DV->BTV", twice, params_["head"])[1], contract("BTD,DV->BTV", twice, params["head"])[1]
    )
    with pytest.raises(ValueError, match="embed has 7 rows, and the adapter replaces number 7"):
        attach(params, Adapter({}, {}, {"embed": Tokens(np.array([7]), normal(1, 4))}))


def test_a_replaced_row_costs_no_vocabulary_of_floats():
    params = {"embed": normal(5000, 4), "head": normal(4, 5000, seed=1)}
    tokens = Tokens(np.arange(100), normal(100, 4, seed=2))
    new = attach(params, Adapter({}, {}, {"embed": tokens, "head": tokens}))
    for path in params:
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(new[path])) - params[path].nbytes == 5000 * 4 + 100 * 4 * 4


def test_the_length_of_dora_is_no_variable_of_training():
    w, a, b, magnitude = normal(6, 5), normal(6, 2, seed=1), normal(2, 5, seed=2), normal(5, seed=3)

    def loss(a: jax.Array, magnitude: jax.Array) -> jax.Array:
        adapter = Adapter({"head": Update(a, b, magnitude, scale=0.5)}, {}, {})
        return contract("BTD,DV->BTV", x, attach({"embed": normal(5, 6), "head": w}, adapter)["head"]).sum()

    x = normal(2, 3, 6, seed=4)
    whole = w + 0.5 * a @ b
    length = jnp.sqrt(jnp.square(whole).sum(0))
    close(loss(a, magnitude), (x @ whole * (magnitude / length)[None, None]).sum())
    by_a, by_magnitude = jax.grad(loss, argnums=(0, 1))(a, magnitude)
    seen = x.sum((0, 1))
    close(by_a, 0.5 * seen[:, None] * (b @ (magnitude / length))[None])
    close(by_magnitude, (seen @ whole) / length)


def test_what_does_not_fit_is_named():
    params = {"embed": normal(7, 4), "head": normal(4, 7)}
    wrong = Adapter({"head": Update(normal(3, 2), normal(2, 7))}, {}, {})
    with pytest.raises(ValueError, match=r"head is \[4, 7\], the update's factors are \[3, 2\] and \[2, 7\]"):
        attach(params, wrong)
    with pytest.raises(ValueError, match=r"the model has no layers\.0\.q"):
        attach(params, Adapter({"layers.0.q": wrong.updates["head"]}, {}, {}))
    with pytest.raises(ValueError, match=r"embed is \[7, 4\], the adapter's is \[8, 4\]"):
        attach(params, Adapter({}, {"embed": normal(8, 4)}, {}))
    with pytest.raises(ValueError, match="there is none of number -2"):
        choose_adapters(attach(params, [Adapter({"head": Update(normal(4, 2), normal(2, 7))}, {}, {})]), [-2])
