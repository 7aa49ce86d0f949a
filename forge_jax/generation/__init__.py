"""From prompts to tokens: prefill in buckets, one jitted loop to decode, the same step for streams and batches.

Knows token ids only; text, stop strings and templates belong to the front.
"""

from forge_jax.generation.held import Held, fork, trim
from forge_jax.generation.loop import State, advance, prefill, step
from forge_jax.generation.session import Session
from forge_jax.generation.sizes import bucket, capacity
from forge_jax.generation.whole import generate, stream

__all__ = [
    "Held",
    "Session",
    "State",
    "advance",
    "bucket",
    "capacity",
    "fork",
    "generate",
    "prefill",
    "step",
    "stream",
    "trim",
]
