"""How well a model predicts a text, and how far it is from a reference on it: perplexity, KL divergence and their kin.

The statistics are those of llama.cpp's perplexity tool, so that figures can be compared with published ones. The text
is read in windows of `context` tokens, and a token is scored by what the model expects after those before it in its
window. There are two ways to choose windows:

- second halves (the default, and llama.cpp's): windows follow each other, and the tokens behind the middle of each
  are scored, so that every one has at least half a window before it: T - T // 2 - 1 of a window of T tokens. What
  does not fill a window is left out.
- every token (`stride`): windows end `stride` tokens apart and the last `stride` of each are scored, so that each
  token but the first counts once, with at least `context - stride` before it, or all there are.

Where the tokenizer puts a token before a text (BOS), every window begins with it: it comes before the text and takes
the place of the first token of each later window, which is never scored. Part of the front.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from forge_jax.cache import Policy, policy
from forge_jax.evaluation.figures import Comparison, Estimate, Evaluation, compare, mean
from forge_jax.evaluation.rows import Row, overlapping, scored
from forge_jax.evaluation.tables import table
from forge_jax.forge import Forge
from forge_jax.generation.sizes import compute_dtype
from forge_jax.loading import Model

__all__ = ["Comparison", "Estimate", "Evaluation", "evaluate", "table"]

CONTEXT = 512  # llama.cpp's


def evaluate(
    model: Model | Forge,
    text: str | Sequence[int],
    *,
    reference: Model | Forge | None = None,
    context: int | None = None,
    stride: int | None = None,
    batch: int = 1,
    tokens: int | None = None,
    cache_dtype: Any = None,
    progress: bool = False,
) -> Evaluation:
    """Evaluate a model on a text, beside a reference if one is given; see the module for what is scored.

    Args:
        text: a text, in which nothing is read as a special token, or ids, which are taken as they are.
        reference: a model with the same vocabulary. Both are in memory, of their logits a few places at a time.
        context: tokens of a window; 512, or the models' context if that is less.
        stride: score every token, windows ending so many tokens apart; None: the second halves of windows.
        batch: windows that are computed together.
        tokens: read only so many tokens of the text.
        cache_dtype: the model, not the reference, sees keys and values as a cache would keep them (see `Session`).
        progress: show a bar.

    Raises:
        ValueError: a text too short for a window, sizes out of range, models with other vocabularies, or logits that
            are not numbers.
    """
    start = time.perf_counter()
    models = [m.model if isinstance(m, Forge) else m for m in (reference, model) if m is not None]
    if tokens is not None and tokens < 1:
        raise ValueError(f"evaluate: tokens = {tokens}; expected 1 or more")
    ids, bos = ids_of(models, text)
    ids = ids[:tokens]
    context = min(CONTEXT, *(m.spec.max_seq_len for m in models)) if context is None else context
    check(models, ids, context, stride, batch)
    kept = None if cache_dtype is None else seen_as(models[-1], cache_dtype)
    rows = windows(ids, context, stride, bos)
    places = context - context // 2 - 1 if stride is None else stride
    parts = scored(models, rows, length=context - 1, places=places, batch=batch, progress=progress, kept=kept)
    target_N, *found = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
    logprob_MN, best_MN, divergence_MN = found
    nll = mean(-logprob_MN[-1].astype(np.float64))
    bits = bits_per_nat(models, target_N) if isinstance(text, str) else None
    return Evaluation(
        str(models[-1].path),
        len(target_N),
        len(rows),
        context,
        stride,
        nll,
        nll.exp(),
        None if bits is None else nll.times(bits),
        None if reference is None else compare(str(models[0].path), logprob_MN, best_MN, divergence_MN[1], bits),
        time.perf_counter() - start,
    )


def seen_as(model: Model, cache_dtype: Any) -> Policy:
    """How a cache of the model would keep keys and values.

    Raises:
        ValueError: an unknown codec, or a model that is spread over devices.
    """
    if model.mesh is not None:
        raise ValueError("evaluate: cache_dtype on a mesh is not implemented; load the model without one")
    return policy(cache_dtype, compute_dtype(model.params))


def windows(ids: np.ndarray, context: int, stride: int | None, bos: int | None) -> list[Row]:
    """The windows of a text: second halves of them, or with a stride every token (see the module)."""
    if stride is not None:
        rows = overlapping(ids, context, stride)
    else:
        starts = range(0, len(ids) - context + 1, context)
        rows = [Row(ids[start : start + context], context - context // 2 - 1) for start in starts]
    return rows if bos is None else [Row(np.asarray([bos, *row.ids[1:]]), row.count) for row in rows]


def ids_of(models: Sequence[Model], text: str | Sequence[int]) -> tuple[np.ndarray, int | None]:
    """The ids of a text, and the id that every window of it begins with.

    Raises:
        ValueError: no model has a tokenizer, the tokenizers give different ids, or ids are no row of integers.
    """
    if not isinstance(text, str):
        ids = np.asarray(text)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"evaluate: ids are {ids.dtype}{list(ids.shape)}; expected a row of integers")
        return ids.astype(np.int64), None
    read = []
    for tokenizer in (model.tokenizer for model in models if model.tokenizer is not None):
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        first = tokenizer.encode("")[:1]
        bos = first[0] if first and first[0] == tokenizer.bos_id else None
        read.append(([] if bos is None else [bos]) + ids)
    if not read:
        raise ValueError(f"evaluate: {models[-1].path} has no tokenizer; give the text as token ids")
    if read[0] != read[-1]:
        pairs = zip(read[0], read[-1], strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(map(len, read)))
        raise ValueError(
            f"evaluate: {models[-1].path} reads the text as other ids than {models[0].path}, from token {at} on; "
            "models can be compared only if they share a tokenizer"
        )
    return np.asarray(read[-1], np.int64), bos


def check(models: Sequence[Model], ids: np.ndarray, context: int, stride: int | None, batch: int) -> None:
    """Raise ValueError for sizes out of range, a text without a window, ids or models of another vocabulary."""
    most, logits = min(m.spec.max_seq_len for m in models), [m.spec.logits for m in models]
    if len(set(logits)) > 1:
        raise ValueError(
            f"evaluate: {models[1].path} gives {logits[1]} logits, {models[0].path} {logits[0]}; models can be "
            "compared only if they share a vocabulary"
        )
    if not 5 <= context <= most:
        raise ValueError(f"evaluate: context = {context}; expected 5 to {most}, the context of the model")
    if stride is not None and not 1 <= stride < context:
        raise ValueError(f"evaluate: stride = {stride}; expected 1 to {context - 1}, less than the window of {context}")
    if batch < 1:
        raise ValueError(f"evaluate: batch = {batch}; expected 1 or more")
    need = context if stride is None else 3
    if len(ids) < need:
        way = "" if stride is not None else ", a smaller context, or a stride to score every token"
        raise ValueError(f"evaluate: the text has {len(ids)} tokens, a window needs {need}; give a longer text{way}")
    if ids.min() < 0 or ids.max() >= logits[0]:
        raise ValueError(f"evaluate: ids reach from {ids.min()} to {ids.max()}; the vocabulary has {logits[0]}")


def bits_per_nat(models: Sequence[Model], target_N: np.ndarray) -> float:
    """What makes nats a token into bits a byte, of the bytes that the tokens stand for."""
    tokenizer = next(model.tokenizer for model in reversed(models) if model.tokenizer is not None)
    total = sum(len(tokenizer.token_bytes(int(token))) for token in target_N)
    return len(target_N) / total / float(np.log(2.0))
