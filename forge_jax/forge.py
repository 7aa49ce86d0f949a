"""`Forge`: the object that notebooks hold. A thin, stateful facade over the pure functions.

It keeps a spec, the parameters, a tokenizer and a cache, and nothing of the mathematics. The names, defaults and
return values of the original `Forge` are kept; where the original was wrong, the behaviour is right and the name stays.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from forge_jax import cache as caches
from forge_jax import decoder, text
from forge_jax.adapting import Held
from forge_jax.compilation import keep_programs
from forge_jax.config import ForgeConfig, unsupported
from forge_jax.forge_adapters import ForgeAdapters
from forge_jax.forge_drafts import ForgeDrafts
from forge_jax.forge_files import Summary
from forge_jax.forge_inputs import checked_ids, checked_targets, cross_entropy
from forge_jax.generation import Session, capacity
from forge_jax.generation.asked import Choices
from forge_jax.generation.sizes import compute_dtype
from forge_jax.loading import Model
from forge_jax.params import count, init
from forge_jax.presets import preset_config
from forge_jax.sampling import SamplingParams, Vocabulary
from forge_jax.spec import ModelSpec
from forge_jax.training import balance_loss, mixtures, routing
from forge_jax.warming import warmup

SIZES: Mapping[str, int] = {"dim": 256, "n_layers": 6, "n_heads": 8, "max_seq_len": 2048}
"""Of a model that nothing was said of; smaller than a bare ForgeConfig, as they always were."""


class Forge(ForgeAdapters, ForgeDrafts):
    """A language model.

    >>> model = Forge(config=ForgeConfig(dim=64, n_layers=2, n_heads=2))      # new, random weights
    >>> model = Forge.from_any("smollm2")                                     # doctest: +SKIP
    >>> print(model.complete("The capital of France is"))                     # doctest: +SKIP
    """

    def __init__(
        self,
        vocab_size: int = 8000,
        dim: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        max_len: int | None = None,
        config: ForgeConfig | None = None,
        *,
        seed: int = 0,
        **fields: Any,
    ) -> None:
        """Make a new model with random weights.

        Args:
            vocab_size, dim, depth, heads, max_len: the usual sizes; 8000 / 256 / 6 / 8 / 2048 if nothing is given.
            config: all of it in one object; other arguments must then be absent.
            seed: of the weights.
            fields: further fields of ForgeConfig.

        Raises:
            ValueError: values that do not go together; the message names them.
            NotImplementedError: an option that this version cannot honour.
        """
        named = {"dim": dim, "n_layers": depth, "n_heads": heads, "max_seq_len": max_len}
        given = {name: value for name, value in named.items() if value is not None}
        if config is None:
            config = ForgeConfig.from_dict({"vocab_size": vocab_size, **SIZES, **fields, **given})
        elif fields or given or vocab_size not in (8000, config.vocab_size):
            raise ValueError("Forge: give either a config or sizes, not both; change the config instead")
        if missing := unsupported(config):
            raise NotImplementedError("Forge: " + "; ".join(missing))
        keep_programs()
        spec = config.to_spec()
        described = MappingProxyType({"model_type": "forge", **config.to_dict()})
        self.adopt(Model(spec, init(spec, jax.random.key(seed)), None, described, format="forge"), config)

    def adopt(self, model: Model, config: ForgeConfig | Summary) -> None:
        """Become the facade of a model."""
        self.model, self.config, self.adapters = model, config, Held(model)
        self.cache: caches.Cache | None = None
        self._routing: caches.Cache | None = None
        self._held = (0, 0, 0)  # rows and tokens in the cache, and tokens that it has room for
        self.session: Session | None = None

    # -------------------------------------------------------------------------------------------- facts
    @property
    def spec(self) -> ModelSpec:
        """What is computed."""
        return self.model.spec

    @property
    def params(self) -> dict[str, Any]:
        """The parameters: a plain pytree, yours to use with the pure functions."""
        return self.model.params

    @params.setter
    def params(self, params: dict[str, Any]) -> None:
        self.model = dataclasses.replace(self.model, params=params)
        self.adapters = Held(self.model)
        self.clear_cache()

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the checkpoint, or None."""
        return self.model.tokenizer

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The bytes of the tokens, which a session needs for constraints."""
        return self.model.vocabulary

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.spec.vocab_size

    @property
    def dim(self) -> int:
        """Width of the stream."""
        return self.spec.dim

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.spec.layers)

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.config.n_heads

    @property
    def max_len(self) -> int:
        """Tokens that the model can look at."""
        return self.spec.max_seq_len

    @property
    def num_parameters(self) -> int:
        """Number of parameters, tied weights once."""
        return count(self.spec)

    def __repr__(self) -> str:
        return repr(self.model).replace("Model(", "Forge(", 1)

    def get_config(self) -> dict[str, Any]:
        """The config as a dict: that of the checkpoint, or the ForgeConfig."""
        return dict(self.model.config)

    # -------------------------------------------------------------------------------------------- forward
    def forward(
        self,
        input_ids: Any,
        targets: Any = None,
        use_cache: bool = False,
        start_pos: int = 0,
        return_loss: bool = False,
        *,
        ignore_index: int = 0,
    ) -> Array | tuple[Array, Array]:
        """Logits [B, T, V] in float32, and the mean cross-entropy if `targets` are given.

        Args:
            input_ids: [B, T] ids.
            targets: [B, T] ids that the logits should predict, already shifted; `ignore_index` is left out.
            use_cache: remember these tokens; they follow `start_pos` tokens that earlier calls put into the cache.
            return_loss: give (logits, loss) also without targets: the inputs then predict their successors.

        Raises:
            ValueError: ids of the wrong shape or range, more than the context holds, or a start_pos that the cache
                does not reach.
        """
        ids = self._ids(input_ids)
        capacity(ids.shape[1], self.max_len)
        if use_cache:
            logits = self._cached_forward(ids, start_pos)
        elif start_pos:
            raise ValueError("Forge.forward: start_pos counts tokens in the cache; pass use_cache=True")
        else:
            empty = routing(self.spec) if any(mixtures(self.spec)) else None
            logits, self._routing = self.model.programs.forward(self.spec, self.params, decoder.inputs(ids), empty)
        if targets is not None:
            return logits, cross_entropy(
                logits, checked_targets(targets, ids, self.vocab_size, ignore_index), ignore_index
            )
        if return_loss:
            return logits, cross_entropy(logits[:, :-1], ids[:, 1:], ignore_index)
        return logits

    __call__ = forward

    def _cached_forward(self, ids: Array, start_pos: int) -> Array:
        programs, batch = self.model.programs, ids.shape[0]
        rows, held, room = self._held
        if not 0 <= start_pos <= held:
            raise ValueError(f"Forge.forward: start_pos = {start_pos}, but the cache holds {held} tokens")
        if start_pos and batch != rows:
            raise ValueError(f"Forge.forward: {batch} rows, but the cache holds {rows}")
        if 0 < start_pos < held and caches.recurrent(self.spec):
            raise ValueError(
                f"Forge.forward: start_pos = {start_pos}, but the cache holds {held} tokens, and a running state "
                "cannot go back; start again from 0"
            )
        # slack: no layer forgets what is outside its window, so that any start_pos can be gone back to
        size = capacity(start_pos + ids.shape[1], self.max_len)
        cache, self.cache, self._held = self.cache, None, (0, 0, 0)
        if cache is None or not start_pos:
            cache, room = programs.new_cache(self.spec, batch, size, slack=size, dtype=self._cache_dtype()), size
        elif start_pos < held:
            cache = caches.rewind(cache, jnp.full((batch,), start_pos, jnp.int32))
        if size > room:
            cache = caches.widen(
                cache, programs.new_cache(self.spec, batch, size, slack=size, dtype=self._cache_dtype())
            )
        logits, self.cache = programs.forward(self.spec, self.params, decoder.inputs(ids, start_pos), cache)
        self._held = (batch, start_pos + ids.shape[1], max(size, room))
        return logits

    def _cache_dtype(self) -> Any:
        return caches.policy(self.config.kv_cache_dtype, compute_dtype(self.params))

    def _ids(self, ids: Any) -> Array:
        return checked_ids(ids, self.vocab_size)

    def forward_multimodal(
        self, input_ids: Any = None, vision_features: Any = None, audio_features: Any = None
    ) -> Array:
        """Logits over vision, audio and text tokens, in that order."""
        if input_ids is None and vision_features is None and audio_features is None:
            raise ValueError("Forge.forward_multimodal: no inputs at all; give input_ids or features")
        if vision_features is not None or audio_features is not None:
            raise ValueError("Forge.forward_multimodal: this model has no projection for vision or audio features")
        logits = self.forward(input_ids)
        return logits[0] if isinstance(logits, tuple) else logits

    def clear_cache(self) -> None:
        """Forget every token."""
        self.cache, self._held = None, (0, 0, 0)
        self.session = None

    def get_moe_aux_loss(self) -> Array:
        """`moe_load_balancing` times Switch's balance loss of the last `forward` without a cache; 0 without experts."""
        if self._routing is None or not isinstance(self.config, ForgeConfig):
            return jnp.zeros(())
        return self.config.moe_load_balancing * balance_loss(self.spec, self._routing)

    # -------------------------------------------------------------------------------------------- ids
    def generate(
        self,
        input_ids: Any,
        max_new_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = 50,
        top_p: float = 0.9,
        repetition_penalty: float = 1.1,
        stop_tokens: Sequence[int] | None = None,
        *,
        return_logits: bool = False,
        stream: bool = False,
        pad_token: int = 0,
        adapters: Sequence[str | None] | None = None,
        **choices: Unpack[Choices],
    ) -> Any:
        """Continue ids [B, T]; rows that end early are filled with `pad_token`.

        Args:
            temperature: 0 is greedy.
            stop_tokens: ids that end a row; None: those of the tokenizer, []: none.
            return_logits: also give the logits [B, new, V] that each new token was drawn from, before any processing.
            stream: give an iterator over new ids instead, as `generate_stream`.
            adapters: the name of each row's adapter of those that `load_lora` loaded, None for the base alone.
            choices: further ones of `Session`: n, seed, cache_dtype, layout, held, draft_always, invariant. How keys
                and values are kept and laid out is as the config says unless it is given.

        Returns:
            ids [B * n, T + new] with the prompt, int32 (NumPy); with `return_logits` a pair.

        Raises:
            ValueError: more tokens than the context holds, sampling values out of range, or choices that do not go
                together; the message names them.
        """
        ids = np.asarray(self._ids(input_ids))
        sampling = SamplingParams(temperature, top_k, top_p, repetition_penalty=repetition_penalty)
        session = self._session(ids, max_new_tokens, sampling, stop_tokens, adapters, choices)
        if stream:
            return self._tokens(session)
        session.advance()
        rows = session.ids()
        out = np.full((len(rows), ids.shape[1] + max(map(len, rows))), pad_token, np.int32)
        out[:, : ids.shape[1]] = np.repeat(ids, len(rows) // len(ids), axis=0)
        for i, row in enumerate(rows):
            out[i, ids.shape[1] : ids.shape[1] + len(row)] = row
        if not return_logits:
            return out
        logits, _ = session.programs.forward(session.spec, session.params, decoder.inputs(out))
        return out, logits[:, ids.shape[1] - 1 : -1]

    def generate_stream(
        self,
        input_ids: Any,
        max_new_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = 50,
        top_p: float = 0.9,
        repetition_penalty: float = 1.1,
        stop_tokens: Sequence[int] | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        **choices: Unpack[Choices],
    ) -> Iterator[int | list[int | None]]:
        """Yield new ids one by one: an id for a single row, a list (None: ended) for several. As `generate` gives."""
        ids = np.asarray(self._ids(input_ids))
        sampling = SamplingParams(temperature, top_k, top_p, repetition_penalty=repetition_penalty)
        return self._tokens(self._session(ids, max_new_tokens, sampling, stop_tokens, adapters, choices))

    def _session(
        self,
        ids: np.ndarray,
        max_new_tokens: int,
        sampling: SamplingParams,
        stop_tokens: Sequence[int] | None,
        adapters: Sequence[str | None] | None,
        choices: Choices,
    ) -> Session:
        model, numbers = self._by_row(adapters)
        self.session = Session(
            model.spec,
            model.params,
            ids.tolist(),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop_ids=text.stop_ids(self.model) if stop_tokens is None else stop_tokens,
            programs=model.programs,
            draft=self.draft,
            adapters=numbers,
            **self._chosen(choices),
        )
        return self.session

    def _chosen(self, choices: Choices) -> Choices:
        """The choices, and where there is none what the config says of caches."""
        dtype, layout = choices.get("cache_dtype"), "paged" if self.config.use_paged_attn else "dense"
        dtype = self._cache_dtype() if dtype is None else dtype
        return Choices(layout=layout) | choices | Choices(cache_dtype=dtype)

    def _tokens(self, session: Session) -> Iterator[int | list[int | None]]:
        for step in session.steps():
            yield step if len(step) > 1 else step[0]  # type: ignore[misc]

    # -------------------------------------------------------------------------------------------- text
    def complete(self, prompt: Any, **options: Any) -> Any:
        """Complete a text, or several; gives as many. Options: `forge_jax.text.complete`; `adapters` are names here."""
        several = not isinstance(prompt, str)
        replies, _ = text.complete(prompts=list(prompt) if several else [prompt], **self._options(options))
        return [reply.text for reply in replies] if several or len(replies) > 1 else replies[0].text

    def _options(self, given: Any) -> dict[str, Any]:
        """The model that makes texts, and how; what is not given is as for `generate`."""
        model, numbers = self._by_row(given.get("adapters"))
        return {"draft": self.draft} | given | self._chosen(given) | {"model": model, "adapters": numbers}

    def warmup(self, **options: Any) -> float:
        """Compile ahead what `complete`, `chat` and `stream` will need. Options: `forge_jax.warming.warmup`."""
        return warmup(**self._options(options))

    def chat(self, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> str:
        """Answer a message, or a list of {"role", "content"} messages, through the model's chat template."""
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return text.complete(prompts=[turns], **self._options(options))[0][0].text

    def stream(self, prompt: Any, **options: Any) -> text.TextStream:
        """Complete a text, or a chat given as messages, piece by piece. Options: `forge_jax.text.stream`."""
        return text.stream(prompt=prompt, **self._options(options))


def create_model(size: str = "small", vocab_size: int | None = None, **overrides: Any) -> Forge:
    """A new model of a preset size, with random weights. `overrides` are fields of ForgeConfig.

    Raises:
        TypeError: `size` is no string.
        ValueError: an unknown size or field; the message names the nearest.
    """
    return Forge(config=preset_config(size, vocab_size, **overrides))


def load(name: str | Path, **options: Any) -> Forge:
    """Load a directory, a file or a hub id of any format. Options: `forge_jax.loading.load`."""
    return Forge.from_any(name, **options)


TinyForge = ForgeModel = Enigma = Forge
