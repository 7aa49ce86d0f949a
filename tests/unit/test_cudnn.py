"""Attention by cuDNN, which is not here: that it is asked for what the plain path computes, when, that it lowers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal

from forge_jax.kernels import cudnn
from forge_jax.ops.attention import triangle, visible
from forge_jax.ops.found import BLOCK, Keys, attend, attend_plainly, span

SCALE = 0.125


def keys(tokens: int, slots: int, window: int | None = None, dtype: str = "float32", start: int = 0) -> Keys:
    """Slots of 2 rows and 3 kv heads, of which the first row has seven in front that are padding."""
    order_BS = jnp.arange(slots)[None] - jnp.asarray([[7], [0]])
    order_BS, none_BS = jnp.where(order_BS < 0, -1, order_BS), jnp.zeros((2, slots), jnp.int32)
    order_BT, none_BT = order_BS[:, start : start + tokens], none_BS[:, start : start + tokens]
    seen = visible(order_BT, none_BT, order_BS, none_BS, window)
    return Keys(normal(2, 3, slots, 64, seed=1, dtype=dtype), normal(2, 3, slots, 64, seed=2, dtype=dtype), seen)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were one; cuDNN's part is done by XLA, from the same arguments."""
    asked = jax.nn.dot_product_attention

    def instead(*args, implementation: str, **options):
        assert implementation == "cudnn"
        return asked(*args, **options, implementation="xla")

    monkeypatch.setenv(cudnn.SWITCH, "1")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)


@pytest.mark.parametrize("window", [None, 16])
def test_it_is_asked_for_what_the_plain_path_computes(window: int | None, on_a_gpu: None):
    q, whole = normal(2, 40, 9, 64), keys(40, 100, window, start=60)
    parts = [whole.cut(slice(None), slice(0, 60)), whole.cut(slice(None), slice(60, None))]
    found = cudnn.look(q, [(part.k_BKSH, part.v_BKSH, part.seen_BTS) for part in parts], None, SCALE, None)
    expected = attend_plainly(q, [whole], scale=SCALE, softcap=None, sinks_N=None)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_a_prompt_is_looked_at_in_few_calls_where_cudnn_takes_it(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch):
    q, whole = normal(2, 300, 9, 64, dtype="bfloat16"), keys(300, 300, dtype="bfloat16")
    spans: list[int] = []

    def look(q_BTNH: jax.Array, parts: list[Keys]) -> jax.Array:
        spans.append(q_BTNH.shape[1])
        return q_BTNH

    assert span(q, [whole], softcap=None, sinks_N=None) == cudnn.SPAN
    assert span(q, [whole], softcap=30.0, sinks_N=None) == BLOCK
    monkeypatch.setenv(cudnn.SWITCH, "0")
    assert span(q, [whole], softcap=None, sinks_N=None) == BLOCK
    for size in (cudnn.SPAN, BLOCK):
        triangle(look, q, whole, size=size)
    assert spans == [300, 128, 128, 44]


def test_what_it_does_not_know_takes_the_plain_path(on_a_gpu: None):
    known = keys(8, 8, dtype="bfloat16")
    parts, q = [(known.k_BKSH, known.v_BKSH, known.seen_BTS)], normal(2, 8, 9, 64, dtype="bfloat16")
    assert cudnn.looks(q, parts, None, None)
    assert not cudnn.looks(q.astype(jnp.float32), parts, None, None)
    assert not cudnn.looks(q[:, :1], parts, None, None)
    assert not cudnn.looks(q, parts, jnp.zeros(9), None)
    assert not cudnn.looks(q, parts, None, 30.0)
    assert not cudnn.looks(q[..., :60], parts, None, None)


def test_the_switch_says_what_it_does_and_what_it_cannot(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(cudnn.SWITCH, raising=False)
    assert cudnn.told() == "of cuDNN: off (FORGE_JAX_CUDNN is not set)"
    q, near = normal(2, 8, 9, 64, dtype="bfloat16"), keys(8, 8, dtype="bfloat16")
    for value, words in (("1", "default device is cpu and no GPU; unset it"), ("yes", "is 'yes'; expected 1 or 0")):
        monkeypatch.setenv(cudnn.SWITCH, value)
        with pytest.raises(ValueError, match=words):
            attend(q, [near], scale=SCALE)
        assert words in cudnn.told()


def test_it_lowers_for_a_gpu_that_is_not_here(monkeypatch: pytest.MonkeyPatch):
    calls = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setenv(cudnn.SWITCH, "1")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(calls, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(calls, "check_compute_capability", lambda _: True)
    q, near = normal(2, 8, 9, 64, dtype="bfloat16"), keys(8, 8, dtype="bfloat16")
    run = jax.jit(lambda q: attend(q, [near], scale=SCALE))
    assert "__cudnn$fmha" in run.trace(q).lower(lowering_platforms=("cuda",)).as_text()
    assert cudnn.told() == "of cuDNN: on, for prompts"
