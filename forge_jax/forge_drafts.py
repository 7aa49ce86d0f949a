"""The part of `Forge` that speculates: who drafts its tokens."""

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

from forge_jax import text
from forge_jax.drafters import load_drafter
from forge_jax.generation.speculation import Drafter, DraftModel
from forge_jax.loading import Model


class ForgeDrafts(ABC):
    """Speculative decoding. `Forge` brings the model."""

    model: Model
    draft: Drafter | None = None

    @abstractmethod
    def generate(self, input_ids: Any, max_new_tokens: int = 100, **options: Any) -> Any:
        """As `Forge.generate`."""

    def enable_speculative_decoding(self, draft_model: Any, num_speculative_tokens: int = 4) -> None:
        """From now on let a smaller model draft; every method then gives the same tokens as before, but faster.

        Args:
            draft_model: a Forge or a loaded model of the same vocabulary, or another drafter, such as `forge.Lookup()`;
                or where one lies, a smaller model or an EAGLE-3 head: a directory or a hub id (`forge.load_drafter`).
            num_speculative_tokens: drafted a round at most.

        Raises:
            ValueError: another vocabulary, or a number of tokens out of range; or as `load_drafter`.
        """
        if isinstance(draft_model, str | Path):
            self.draft = load_drafter(draft_model, self.model, tokens=num_speculative_tokens)
            return
        model = draft_model.model if isinstance(draft_model, ForgeDrafts) else draft_model
        drafter = text.drafter(self.model, model)
        if drafter is None:
            raise ValueError("Forge.enable_speculative_decoding: no draft model is given; pass one, or forge.Lookup()")
        if isinstance(model, Model) and isinstance(drafter, DraftModel):
            drafter = replace(drafter, tokens=num_speculative_tokens)
        drafter.check(self.model.spec, self.model.params, text.known_ids(self.model))
        self.draft = drafter

    def disable_speculative_decoding(self) -> None:
        """Draft no more."""
        self.draft = None

    def generate_speculative(self, input_ids: Any, max_new_tokens: int = 100, **options: Any) -> Any:
        """`generate`, after `enable_speculative_decoding`; the same options, the same tokens.

        Raises:
            ValueError: nothing drafts; or as `generate`.
        """
        if self.draft is None:
            raise ValueError(
                "Forge.generate_speculative: nothing drafts; call enable_speculative_decoding(model) first"
            )
        return self.generate(input_ids, max_new_tokens, **options)
