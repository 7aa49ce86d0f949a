"""How many bytes a token takes in a cache, counted from the arrays that the codecs make."""

from typing import Any

import jax

from forge_jax.cache.memory import memories
from forge_jax.cache.policy import codecs, policy, slabs
from forge_jax.cache.stored import Stored, empty
from forge_jax.spec import ModelSpec


def slot_bytes(spec: ModelSpec, kept: Any = None) -> dict[str, int]:
    """Bytes of one slot over all layers that have places of a key; entries for 4 tokens each are under "every4".

    `kept` is what `forge_jax.cache.policy.policy` takes; None: float32. Running states have no slots: `state_bytes`.
    """
    chosen, out = codecs(spec, policy(kept)), dict[str, int]()
    for place in slabs(spec):
        slab = place.slab
        key = place.key if slab.every is None else f"every{slab.every}"
        one = nbytes(empty, chosen[place.layer, place.branch, place.name], (1, *slab.shape[:-1], 1, slab.shape[-1]))
        out[key] = out.get(key, 0) + one
    return out


def bytes_per_token(spec: ModelSpec, kept: Any = None) -> float:
    """Bytes that each token adds to a cache, as long as no window is full."""
    tokens = lambda key: int(key.removeprefix("every")) if key.startswith("every") else 1  # noqa: E731
    return sum(size / tokens(key) for key, size in slot_bytes(spec, kept).items())


def state_bytes(spec: ModelSpec) -> int:
    """Bytes of the running states of one row, float32, however long it is."""
    shapes = [slab.shape for _, _, _, held in memories(spec) for slab in held.values() if not slab.slots]
    return sum(4 * jax.ShapeDtypeStruct(shape, "float32").size for shape in shapes)


def nbytes(make: Any, *args: Any) -> int:
    """Bytes of the arrays that a function of static arguments makes."""
    made: Stored = jax.eval_shape(lambda: make(*args))
    return made.nbytes
