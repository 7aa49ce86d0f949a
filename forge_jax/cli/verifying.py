"""The same ids through this library and through transformers, one model in memory after the other."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from forge_jax import decoder, text
from forge_jax.generation import generate
from forge_jax.loading import Model


@dataclass(frozen=True)
class Comparison:
    """How far two implementations are apart on a prompt and its greedy continuation.

    difference: the largest |ours - theirs|. relative: that over the largest |theirs|. top1: the share of places where
    both prefer the same token. same_ids: whether our greedy ids, made with a cache, are theirs; where they part at a
    place at which theirs sees two tokens closer than the difference, they count as the same.
    """

    places: int
    vocabulary: int
    difference: float
    relative: float
    top1: float
    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    same_ids: bool

    def __str__(self) -> str:
        """A line a figure."""
        lines = [
            f"logits          {self.places} places x {self.vocabulary:,} tokens, float32",
            f"largest         {self.difference:.3e} apart, {self.relative:.3e} of the largest logit",
            f"same top-1      {self.top1:.2%}",
            f"greedy ids      {'the same' if self.ours == self.theirs else 'tied' if self.same_ids else 'different'}",
        ]
        if self.ours != self.theirs:
            lines += [f"  ours          {list(self.ours)}", f"  transformers  {list(self.theirs)}"]
        return "\n".join(lines)


def compare(model: Model, reference: Path, prompt: str, tokens: int) -> Comparison:
    """Compare a float32 model with transformers' reading of a directory.

    Raises:
        ValueError, OSError: transformers cannot read the directory, or the two have other vocabularies.
    """
    ids = text.encode(model, prompt)
    theirs, wanted = run_reference(reference, ids, tokens)
    with jax.default_matmul_precision("highest"):
        whole = jnp.asarray([[*ids, *theirs[:-1]]], jnp.int32)
        logits = np.asarray(forward(model.spec, model.params, decoder.inputs(whole))[0])[0]
        ours = generate(model.spec, model.params, [ids], max_new_tokens=tokens)[0].ids
    if logits.shape != wanted.shape:
        raise ValueError(f"{reference}: its logits are {wanted.shape}, the model's {logits.shape}; another model")
    apart = float(np.abs(logits - wanted).max())
    return Comparison(
        len(logits),
        logits.shape[1],
        apart,
        apart / float(np.abs(wanted).max()),
        float((logits.argmax(-1) == wanted.argmax(-1)).mean()),
        ours,
        theirs,
        same_or_tied(ours, theirs, wanted[len(ids) - 1 :], apart),
    )


forward = jax.jit(decoder.forward, static_argnames=("spec", "ctx", "driver"))


def same_or_tied(ours: tuple[int, ...], theirs: tuple[int, ...], logits: np.ndarray, apart: float) -> bool:
    """Whether two greedy texts are equal up to a place where the two tokens are as good as equal to the reference."""
    for ids, row in zip(zip(ours, theirs, strict=True), logits, strict=True):
        if ids[0] != ids[1]:
            return bool(abs(row[ids[0]] - row[ids[1]]) <= 2 * apart)
    return True


def run_reference(directory: Path, ids: list[int], tokens: int) -> tuple[tuple[int, ...], np.ndarray]:
    """Greedy ids of transformers, and its logits [T + tokens - 1, V] of all it read.

    Every token is made from the whole text: what its cache is called differs between releases.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
    made: list[int] = []
    logits = np.empty((0, 0), np.float32)
    with torch.no_grad():
        while len(made) < tokens:
            logits = model(torch.tensor([[*ids, *made]]), use_cache=False).logits[0].float().numpy()
            made.append(int(logits[-1].argmax()))
    return tuple(made), logits
