"""The models of this library in lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

    import lm_eval
    from forge_jax.lm_eval import ForgeLM

    lm_eval.simple_evaluate(ForgeLM("smollm2", batch_size=8), tasks=["hellaswag"], limit=100)

From a shell, `python -m forge_jax.lm_eval` is the harness's own command line with the model "forge-jax" in it:

    python -m forge_jax.lm_eval run --model forge-jax --model_args pretrained=model.gguf --tasks hellaswag --limit 100
"""

import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from forge_jax import loading, text
from forge_jax.evaluation import requests as ask
from forge_jax.forge import Forge
from forge_jax.loading import Model

try:
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError("forge_jax.lm_eval needs lm-evaluation-harness: pip install lm_eval") from error

NEW_TOKENS = 256  # where a task does not say; the harness's own default


@register_model("forge-jax")
class ForgeLM(LM):
    """A model as the harness calls it. Likelihoods and greedy texts are those of its HFLM on the same checkpoint."""

    def __init__(
        self,
        pretrained: str | Model | Forge = "smollm2",
        *,
        dtype: str = "auto",
        batch_size: int | str = 8,
        max_length: int | None = None,
        prefix_token_id: int | None = None,
        device: str | None = None,
    ) -> None:
        """Load the model.

        Args:
            pretrained: a directory, a file, a hub id, or a model that is loaded already.
            dtype: of the weights, if they are loaded here; as `forge_jax.load`.
            batch_size: rows that are computed together.
            max_length: tokens that the model may look at; None: its context.
            prefix_token_id: what stands before a text without a context; None: BOS, or EOS where there is none.
            device: what the harness would tell torch, whether it was asked to or not. JAX has chosen a device already;
                a warning says so if it is of another kind.

        Raises:
            ValueError: no tokenizer, or a batch size that is no number.
        """
        super().__init__()
        if device is not None and not device.startswith(jax.default_backend().replace("gpu", "cuda")):
            logging.getLogger(__name__).warning(
                "runs on %s, not on %s; JAX_PLATFORMS chooses, --device does not", jax.default_backend(), device
            )
        if isinstance(pretrained, str):
            pretrained = loading.load(pretrained, dtype=dtype)
        self.model = pretrained.model if isinstance(pretrained, Forge) else pretrained
        self.tokens = text.need_tokenizer(self.model)
        try:
            self.batch_size = int(batch_size)
        except ValueError:
            raise ValueError(f"forge-jax: batch_size = {batch_size!r}; expected a number of rows") from None
        self.max_length = min(max_length or self.model.spec.max_seq_len, self.model.spec.max_seq_len)
        self.prefix_token_id = ask.prefix_of(self.tokens) if prefix_token_id is None else prefix_token_id

    @property
    def tokenizer_name(self) -> str:
        """What the harness tells its caches apart by."""
        return str(self.model.path).replace("/", "__")

    # ------------------------------------------------------------------------------------------------ requests
    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the continuation's log-probability, and whether it is the greedy one."""
        pairs = [request.args for request in requests]
        rows = [ask.continued(self.tokens, before, after, self.prefix_token_id) for before, after in pairs]
        found = self._likelihoods(rows, disable_tqdm)
        for pair, answer in zip(pairs, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each (text,), however long it is."""
        texts = [request.args[0] for request in requests]
        encoded = [ask.encode(self.tokens, each, self.prefix_token_id) for each in texts]
        rows = [ask.rolled(ids, self.prefix_token_id, self.max_length) for ids in encoded]
        found = iter(self._likelihoods([row for each in rows for row in each], disable_tqdm))
        totals = [float(np.sum([next(found)[0] for _ in each])) for each in rows]
        for each, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (each,), total)
        return totals

    def _likelihoods(self, rows: list[ask.Row], quiet: bool) -> list[tuple[float, bool]]:
        return ask.likelihoods(self.model, rows, limit=self.max_length, batch=self.batch_size, progress=not quiet)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each (context, settings)."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(i)
        out = [""] * len(requests)
        for members in groups.values():
            given = requests[members[0]].args[1]
            prompts = [ask.encode(self.tokens, requests[i].args[0], self.prefix_token_id) for i in members]
            prompts = [prompt or [self.prefix_token_id] for prompt in prompts]
            made = ask.written(
                self.model, prompts, given, limit=self.max_length, batch=self.batch_size, most=NEW_TOKENS
            )
            for i, answer in zip(members, made, strict=True):
                out[i] = answer
                self.cache_hook.add_partial("generate_until", requests[i].args, answer)
        return out

    # ------------------------------------------------------------------------------------------------ chat
    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that a chat is written with, None for none; True is the default one."""
        if not chat_template:
            return None
        return self.tokens.chat_templates.get("default" if chat_template is True else chat_template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as the text of a prompt; without a generation prompt the last message is one to go on with."""
        made = self.tokens.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return made
        last = chat_history[-1]["content"].strip()
        return made[: made.rindex(last) + len(last)]


def main() -> None:
    """The harness's command line, which knows "forge-jax" since this module is imported."""
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()


if __name__ == "__main__":
    main()
