"""Another pass through layers, and its messages: the formulas, and what a config may ask of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from converters.architectures import find
from converters.take import Take
from forge_jax.ops import Call, Context, apply
from forge_jax.ops.message import informed
from forge_jax.params import init
from forge_jax.params.message import message_params
from forge_jax.spec import Again, Message, ModelSpec, Norm

pytestmark = pytest.mark.usefixtures("quick_compiles")

B, T, D, R, EPS = 2, 3, 8, 4, 1e-3
MESSAGE = Message(R, Norm(EPS, scale=False), ("q", "k"))


def drawn(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def rms(x: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps)


def test_a_pass_begins_where_the_first_one_did_and_leaves_what_it_kept():
    kept_BTSD, x_BTD = drawn(0, B, T, 5, D), drawn(1, B, T, D)
    order = jnp.zeros((B, T), jnp.int32)
    call = Call(order, order[..., None], order, {}, bus={"kept": (kept_BTSD, jnp.int32(4))})
    y_BTD, _ = apply(Again(first=1, count=3), {}, x_BTD, None, call, Context())
    np.testing.assert_array_equal(y_BTD, kept_BTSD[:, :, 1])
    np.testing.assert_array_equal(call.bus["kept"][0], kept_BTSD)
    assert int(call.bus["kept"][1]) == 1
    expected = np.concatenate([kept_BTSD[:, :, 2:4], x_BTD[:, :, None]], 2)
    np.testing.assert_array_equal(call.bus["messages"], expected)


@pytest.mark.parametrize("streams", [1, 2])
def test_each_stream_is_mixed_with_a_message_of_its_own(streams: int):
    x, messages = drawn(2, B, T, streams, D), np.asarray(drawn(3, B, T, 4, D))
    params = {
        name: {part: drawn(10 * i + j, *param.shape) for j, (part, param) in enumerate(parts.items())}
        for i, (name, parts) in enumerate(message_params(MESSAGE, D).items())
    }
    bus = {"messages": jnp.asarray(messages)}
    found = jax.jit(informed, static_argnums=0)(MESSAGE, params, x if streams > 1 else x[:, :, 0], bus)
    normed = rms(messages, 1e-6)
    for i, name in enumerate(MESSAGE.streams):
        p = {part: np.asarray(leaf) for part, leaf in params[name].items()}
        own = np.asarray(x[:, :, i if streams > 1 else 0])
        score = np.exp(normed @ p["query"] / np.sqrt(D))
        message = np.einsum("bts,btsd->btd", score / score.sum(-1, keepdims=True), normed)
        low = rms(own, EPS) @ p["down"][0] + rms(message, EPS) @ p["down"][1]
        expected = (1 - np.tanh(low @ p["forget"])) * own + np.tanh(low @ p["gain"]) * message
        np.testing.assert_allclose(found[:, :, i], expected, rtol=1e-5, atol=1e-5)


CONFIG = {
    "model_type": "inkling2_loop_text",
    "vocab_size": 160,
    "unpadded_vocab_size": 160,
    "num_hidden_layers": 6,
    "n_layers_per_attn_res_block": 2,
    "loop_layer_index_start": 2,
    "loop_layer_index_end": 6,
}


def read(**changes: object) -> ModelSpec:
    take = Take(CONFIG | changes, "config.json")
    spec = find("inkling2_loop_text", "config.json").config(take)
    take.done()
    return spec


def test_weights_that_are_used_again_are_there_once():
    once, more = read(loop_num_passes=2), read(loop_num_passes=5)
    assert len(more.layers) == len(once.layers) + 3 * 5
    assert jax.tree.structure(jax.eval_shape(lambda: init(once, jax.random.key(0)))["shared"]) == jax.tree.structure(
        jax.eval_shape(lambda: init(more, jax.random.key(0)))["shared"]
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"loop_num_passes": 1},
        {"loop_layer_index_start": 0},
        {"loop_layer_index_start": 3},
        {"loop_layer_index_end": 2},
        {"loop_layer_index_end": 8},
    ],
)
def test_a_loop_that_is_none_is_refused(changes: dict[str, int]):
    with pytest.raises(ValueError, match=r"config\.json: layers . to . of 6 are run . times; expected 0 < loop_layer"):
        read(**changes)


def test_settings_of_the_loop_may_stand_in_a_dict_but_not_contradict():
    assert read(loop_config={"num_passes": 2, "gate_rank": 64}) == read(loop_num_passes=2)
    with pytest.raises(ValueError, match=r"loop_config: num_passes = 2, but loop_num_passes = 3; remove one"):
        read(loop_num_passes=3, loop_config={"num_passes": 2})
    with pytest.raises(ValueError, match=r"loop_config: .*mystery"):
        read(loop_config={"mystery": 1})
