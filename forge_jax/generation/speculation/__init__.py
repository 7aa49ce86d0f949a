"""Speculative decoding: draft some tokens, verify them in one pass of the model, forget what was wrong.

Exact by construction. What a sampler chooses is a function of (logits, history, position, seed of the row): its noise
is a hash of (key of the row, position, token id). So a draft is accepted exactly where the ordinary sampler, with its
own noise and the history so far, chooses the same token; the text is the one that plain generation gives for the same
seed, whatever the sampler and whoever drafted. Drafters that are models draw with the same noise at the same places,
so that they mostly draw the same token where they think alike (the Gumbel coupling; rejection sampling, arXiv
2302.01318, accepts a little more often, but gives other texts with and without drafts).
"""

from forge_jax.generation.speculation.eagle import EagleHead
from forge_jax.generation.speculation.heads import MtpHead
from forge_jax.generation.speculation.lookup import Lookup
from forge_jax.generation.speculation.models import DraftModel, EarlyExit
from forge_jax.generation.speculation.pace import Report
from forge_jax.generation.speculation.protocol import Drafter, Drafts, Sampler, Target

__all__ = [
    "DraftModel",
    "Drafter",
    "Drafts",
    "EagleHead",
    "EarlyExit",
    "Lookup",
    "MtpHead",
    "Report",
    "Sampler",
    "Target",
]
