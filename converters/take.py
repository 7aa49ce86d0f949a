"""A strict reader of configuration dicts: every key is read, known to have no effect, or an error.

Five admired codebases read `norm_eps`, `head_dim` or `rope_theta` from a config and then ignore it. Here a key that
nobody reads, and that is not at a value which changes nothing, stops the load and is named.
"""

from collections.abc import Iterable, Mapping
from typing import Any

# Keys without effect on the numbers of a forward pass: names, versions, training, generation defaults.
QUIET = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path add_cross_attention architectures
    attention_dropout attention_probs_dropout_prob attn_pdrop auto_map bad_words_ids begin_suppress_tokens
    bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dropout dtype early_stopping embd_pdrop embed_dropout
    embedding_dropout encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout hidden_dropout_prob id2label
    init_std initializer_range is_decoder is_encoder_decoder is_llama_config label2id language layerdrop
    length_penalty max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix problem_type
    pruned_heads remove_invalid_values repetition_penalty resid_dropout resid_pdrop residual_dropout return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config
    transformers_version typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache
    """.split()
)


def switches_nothing_on(value: Any) -> bool:
    """Whether a value means "not used", whatever its key: null, false, an empty list or dict. Zero is a number."""
    return value is None or value is False or value == [] or value == {}


class Take:
    """Reads a config and remembers what was read.

    >>> take = Take({"hidden_size": 64, "rms_norm_eps": 1e-5}, "config.json")
    >>> take("hidden_size"), take("head_dim", None), take("rms_norm_eps")
    (64, None, 1e-05)
    >>> take.done()
    """

    def __init__(self, config: Mapping[str, Any], where: str, allow: Iterable[str] = ()) -> None:
        self.config = dict(config)
        self.where = where
        self.seen: set[str] = set(allow)

    def __call__(self, key: str, *default: Any) -> Any:
        """The value of a key. A missing key or null gives the default; without a default that is an error.

        Raises:
            ValueError: the key is absent and has no default.
        """
        self.seen.add(key)
        value = self.config.get(key)
        if value is not None:
            return value
        if not default:
            raise ValueError(f"{self.where}: {key!r} is missing and has no default; the config is incomplete")
        return default[0]

    def assume(self, defaults: Mapping[str, Any]) -> None:
        """Fill in keys that are absent, with what the architecture's own config class takes then.

        A null stays null: where absence means 4096, null means "none".
        """
        self.config = {**defaults, **self.config}

    def either(self, *keys: str, default: Any) -> Any:
        """The first of several names of one setting that is present."""
        values = [self(key, None) for key in keys]
        return next((value for value in values if value is not None), default)

    def has(self, key: str) -> bool:
        """Whether the key is there and not null. Does not count as reading it."""
        return self.config.get(key) is not None

    def ignore(self, *keys: str) -> None:
        """Name keys that have no effect in this architecture, whatever they say."""
        self.seen.update(keys)

    def require(self, key: str, expected: Any) -> None:
        """Read a key of which only one value is implemented (or its absence).

        Raises:
            ValueError: the config asks for another value.
        """
        value = self(key, expected)
        if value != expected:
            raise ValueError(f"{self.where}: {key} = {value!r} is not implemented; only {expected!r} is")

    def sub(self, key: str) -> "Take":
        """A reader of a nested dict, with the same strictness; call its `done` too."""
        value = self(key, {})
        if not isinstance(value, Mapping):
            raise ValueError(f"{self.where}: {key} is {type(value).__name__}, expected a dict")
        return Take(value, f"{self.where}: {key}", self.seen)

    def done(self) -> None:
        """Check that nothing was left unread.

        Raises:
            ValueError: keys that were not read, could matter and are not at a value that changes nothing.
        """
        odd = {
            key: value
            for key, value in self.config.items()
            if key not in self.seen and key not in QUIET and not switches_nothing_on(value)
        }
        if odd:
            shown = ", ".join(f"{key}={value!r}" for key, value in list(odd.items())[:5])
            names = ", ".join(repr(key) for key in list(odd)[:5])
            raise ValueError(
                f"{self.where}: {len(odd)} config keys are not understood and could change the numbers: {shown}. "
                f"If they do not matter, load with allow={{{names}}}"
            )
