"""`warmup`: compile what a loaded model will need, before it is needed. Part of the front."""

import time
from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm

from forge_jax import text
from forge_jax.generation import Session
from forge_jax.generation.asked import Choices
from forge_jax.generation.layouts import Layout
from forge_jax.generation.speculation import Drafter
from forge_jax.generation.warming import count, warm
from forge_jax.loading import Model
from forge_jax.sampling import SamplingParams


def warmup(
    model: Model,
    *,
    prompt_tokens: int = 512,
    new_tokens: int = 256,
    batch: int = 1,
    sampling: SamplingParams = text.GREEDY,
    cache_dtype: Any = None,
    layout: Layout = "dense",
    adapters: Sequence[int] | None = None,
    draft: Drafter | Model | None = None,
    progress: bool = True,
) -> float:
    """Compile everything that texts of these sizes need: afterwards no prompt up to that length compiles again.

    For `complete`, `stream` and `chat` of as many rows, with the same options and samplers of the same kind (greedy or
    drawn, the same processors; their numbers do not matter). Kept programs (`forge_jax.compilation`) make it short.

    Args:
        prompt_tokens, new_tokens: the longest prompt, and the most that is made after it.
        batch: rows, prompts times `n`.

    Returns:
        The seconds it took.

    Raises:
        ValueError: no tokens, or more than the context holds.
    """
    start, kept = time.perf_counter(), Choices(cache_dtype=cache_dtype, layout=layout)

    def session(ids: list[int], new: int) -> Session:
        return text.begin(model, [ids] * batch, new, sampling, draft, adapters, kept)

    asked = (prompt_tokens, new_tokens, model.spec.max_seq_len)
    for _ in tqdm(warm(session, *asked), "compiling", count(*asked), leave=False, disable=not progress):
        pass
    return time.perf_counter() - start
