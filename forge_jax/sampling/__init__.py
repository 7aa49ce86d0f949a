"""Sampling: logits processors as a chain of pure functions, and one draw a row that its seed alone decides."""

from forge_jax.sampling.constraint import Constraint
from forge_jax.sampling.matching import Matcher, Vocabulary
from forge_jax.sampling.params import SamplingParams, build, matchers_of
from forge_jax.sampling.processors import VocabularyLimit
from forge_jax.sampling.sampler import distribution, process, sample
from forge_jax.sampling.state import History, SamplerPlan, SamplerValues, start_history, update_history

__all__ = [
    "Constraint",
    "History",
    "Matcher",
    "SamplerPlan",
    "SamplerValues",
    "SamplingParams",
    "Vocabulary",
    "VocabularyLimit",
    "build",
    "distribution",
    "matchers_of",
    "process",
    "sample",
    "start_history",
    "update_history",
]
