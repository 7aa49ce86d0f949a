"""ggml blocks as packed leaves: the same bits on the device as on the host, and products without decoding first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forge_jax.quantization.ggml import GGML_TYPES, Ggml, bytes_of, decode, parts_of
from forge_jax.tensor import QTensor, contract, take

PACKED = [name for name, kind in GGML_TYPES.items() if not kind.plain]


def finite_rows(name: str, rows: int, blocks: int) -> np.ndarray:
    """Random blocks whose scales are ordinary numbers."""
    rng, kind = np.random.default_rng(0), GGML_TYPES[name]
    raw = rng.integers(0, 256, (rows, blocks * kind.nbytes), np.uint8)
    fields = raw.view(kind.layout)
    for field in kind.layout.names or ():
        if kind.layout[field].base.kind == "f":
            fields[field] = rng.normal(size=fields[field].shape)
    if name == "MXFP4":
        fields["e"] = rng.integers(100, 140, fields["e"].shape)
    if name == "IQ1_M":  # the top nibbles of four words are one float16 about 1
        fields["scales"] = fields["scales"] & 0x0FFF | np.array([0x0000, 0x0000, 0xC000, 0x3000], np.uint16)
    return raw


@pytest.mark.parametrize("name", PACKED)
def test_the_device_gives_the_bits_of_the_host(name: str) -> None:
    raw = finite_rows(name, 6, 4)
    parts, dense = parts_of(name, raw), decode(name, raw)
    assert np.isfinite(dense).all()
    np.testing.assert_array_equal(bytes_of(name, parts), raw)
    w = QTensor({field: jnp.asarray(part) for field, part in parts.items()}, Ggml(name))
    assert w.shape == dense.shape
    assert w.nbytes == raw.nbytes
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, dense.shape[1])), jnp.float32)

    @jax.jit
    def run(w: QTensor, x: jax.Array) -> tuple[jax.Array, ...]:
        return (
            w.dense(),
            contract("BTD,VD->BTV", x, w),
            contract("BTD,VD->BTV", x[:1, :1], w),
            take(w, jnp.array([4, 1])),
        )

    values, many, one, rows = run(w, x)
    np.testing.assert_array_equal(values, dense)
    np.testing.assert_array_equal(rows, dense[[4, 1]])
    exact = np.einsum("btd,vd->btv", np.asarray(x, np.float64), dense.astype(np.float64))
    for found, wanted in ((many, exact), (one, exact[:1, :1])):
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(exact).max()
