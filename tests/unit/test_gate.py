"""The gate on the heads of an attention against its definition."""

from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.ops import Call, Context, apply
from forge_jax.params import init, op_params
from forge_jax.spec import Attention, Block, Branch, Gate, ModelSpec

pytestmark = pytest.mark.usefixtures("quick_compiles")

OP = Attention(heads=4, kv_heads=2, head_dim=6, scale=6**-0.5)


@pytest.mark.parametrize(
    ("over", "bias"),
    [("head", None), ("head", "head"), ("feature", None), ("feature", "head"), ("feature", "feature")],
)
def test_gate_multiplies_every_head(over: Literal["head", "feature"], bias: Literal["head", "feature"] | None) -> None:
    op = replace(OP, gate=Gate(over, "softplus", bias))
    params = init(ModelSpec(5, 8, (Block((Branch("a", op),)),), 16), jax.random.key(0))["layers"]["0"]["a"]
    assert set(params) == set(op_params(op, 8))
    if bias is not None:
        params["gate_bias"] = jax.random.normal(jax.random.key(2), params["gate_bias"].shape)
    x = jax.random.normal(jax.random.key(1), (2, 3, 8))
    order = jnp.broadcast_to(jnp.arange(3)[None], (2, 3))
    call = Call(order, order[..., None], jnp.zeros_like(order), {})
    # the identity in the place of the output projection shows the heads
    eye = jnp.eye(24).reshape(4, 6, 24)
    plain, _ = apply(OP, {key: params[key] for key in "qkv"} | {"o": eye}, x, None, call, Context())
    found, _ = apply(op, params | {"o": eye}, x, None, call, Context())
    z = np.einsum("btd,dnh->btnh", x, np.asarray(params["gate"]).reshape(8, 4, -1)).astype(np.float64)
    z = z + (np.asarray(params["gate_bias"]).reshape(4, -1) if bias else 0)
    expected = np.asarray(plain).reshape(2, 3, 4, 6) * np.log1p(np.exp(z))
    np.testing.assert_allclose(found, expected.reshape(2, 3, 24), atol=1e-5)
