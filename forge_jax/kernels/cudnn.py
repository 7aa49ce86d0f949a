"""Attention of prompts by the flash kernels of cuDNN, which JAX calls on GPUs of NVIDIA, for those who ask for them.

They were never run here: `FORGE_JAX_CUDNN=1` asks for them, and the plain path beside them stays.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.kernels import switch

SWITCH = "FORGE_JAX_CUDNN"
SPAN = 2048  # queries of a prompt in one call, whose mask has a number for each key
LARGEST = 128  # features of a head, beyond which only some GPUs have a kernel


def asked() -> bool:
    """Whether programs that are traced now take them.

    Raises:
        ValueError: the switch says something else, or the default device is no GPU.
    """
    if switch.switched(SWITCH) == "0":
        return False
    if (platform := jax.default_backend()) != "gpu":
        raise ValueError(f"{SWITCH} is 1, but the default device is {platform} and no GPU; unset it")
    return True


def told() -> str:
    """A line for people."""
    return switch.told(SWITCH, "of cuDNN", lambda: "on, for prompts" if asked() else "")


def looks(
    q_BTNH: Array, parts: Sequence[tuple[Array, Array, Array]], sinks_N: Array | None, softcap: float | None
) -> bool:
    """Whether there is a kernel for these queries: several, of 16 bits, and plain softmax over what they see."""
    size = q_BTNH.shape[-1]
    apt = q_BTNH.shape[1] > 1 and q_BTNH.dtype in (jnp.bfloat16, jnp.float16) and sinks_N is None and softcap is None
    apt = apt and size % 8 == 0 and size <= LARGEST
    return apt and all(k.shape[-1] == v.shape[-1] == size for k, v, _ in parts) and asked()


def look(
    q_BTNH: Array, parts: Sequence[tuple[Array, Array, Array]], sinks_N: None, scale: float, softcap: None
) -> Array:
    """softmax(scale * q k^T) v over all parts: [B, T, N, H]. parts: k and v [B, K, S, H], and what is seen [B, T, S].

    The keys of several parts are put together, which is little beside looking at them with a prompt.
    """
    del sinks_N, softcap  # `looks` has seen to it that there are none
    b, t = q_BTNH.shape[:2]
    k_BSKH, v_BSKH = (
        jnp.concatenate([part[i].transpose(0, 2, 1, 3) for part in parts], axis=1).astype(q_BTNH.dtype) for i in (0, 1)
    )
    seen_BTS = jnp.concatenate([jnp.broadcast_to(seen, (b, t, seen.shape[2])) for _, _, seen in parts], axis=2)
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=seen_BTS[:, None], scale=scale, implementation="cudnn"
    )
