"""How to change a config by one value, and which changes may leave the logits as they are.

A key that is read must show: it changes the tensors that are asked for, or is refused, or moves the logits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from helpers import Golden

from converters.take import Take

Path = tuple[str, ...]

SWAPS = {
    "relu": "silu",
    "silu": "gelu",
    "sliding_attention": "full_attention",
    "full_attention": "sliding_attention",
    "local": "global",
    "global": "local",
}


class Reader(Take):
    """A `Take` whose `seen` has only what was read: what an architecture ignores on purpose is not in it."""

    def ignore(self, *keys: str) -> None:
        """Do not count these as read."""


def others(value: Any) -> Any:
    """Another value of the same kind, or None where there is no telling."""
    match value:
        case bool():
            return not value
        case 0:
            return 1
        case int():
            return 2 * value
        case float():
            return 3 * value
        case str():
            return SWAPS.get(value, "relu")
        case [int() as mark, *rest] if mark in (0, 1):
            return [1 - mark, *rest]
        case [first, *rest]:
            return [others(first), *rest]
        case _:
            return None


def changes(config: dict[str, Any], prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path of a key, another value) for every value of a config, nested ones too."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from changes(value, (*prefix, key))
        elif others(value) is not None:
            yield (*prefix, key), others(value)


def changed(config: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """The config with one value replaced."""
    key, *rest = path
    return config | {key: changed(config[key], tuple(rest), value) if rest else value}


@dataclass(frozen=True)
class Idle:
    """Keys that may be without effect in some goldens, and why. Patterns of names, as in a shell."""

    goldens: str
    keys: str
    why: str

    def covers(self, golden: Golden, path: Path) -> bool:
        """Whether a key of a golden is excused."""
        return any(fnmatch(golden.name, name) for name in self.goldens.split()) and any(
            fnmatch(".".join(path), key) for key in self.keys.split()
        )


IDLE = (
    Idle(
        "*",
        "max_position_embeddings max_seq_len n_positions seq_length context_length max_context_length",
        "how long a context may be, not what it says",
    ),
    Idle("*longrope* phi3_old_*", "*.short_factor", "the golden is longer than the original length"),
    Idle("llama_longrope_short", "*.long_factor", "the golden is shorter than the original length"),
    Idle("phimoe_longrope_long", "*.short_mscale", "the golden is longer than the original length"),
    Idle(
        "phimoe_old_longrope",
        "*.long_factor *.long_mscale *.original_max_position_embeddings",
        "the golden is shorter than the original length",
    ),
    Idle("dbrx*", "max_seq_len", "how long a context may be, not what it says"),
    Idle("dbrx dbrx_two dbrx_plain dbrx_old", "attn_config.rope_theta", "a base beside attn_config goes first"),
    Idle("dbrx_old", "num_key_value_heads", "attn_config says it"),
    Idle("dbrx_plain", "ffn_config.moe_loss_weight", "of training"),
    Idle("exaone_moe_layers", "sliding_window_pattern first_k_dense_replace", "the lists of layers say it"),
    Idle("exaone_moe_full", "rope_theta sliding_window", "no layer has a window, nor thus a rope"),
    Idle("afmoe_scaled", "global_attn_every_n_layers", "the list of layer types says it"),
    Idle("phi3_*", "*.original_max_position_embeddings", "the same key beside the rope's dict goes first"),
    Idle("ministral3*", "*.max_position_embeddings *.type", "repeats a value that stands elsewhere"),
    Idle(
        "qwen2 qwen2_nulls qwen2_old_yarn qwen3 qwen3_bias_tied",
        "sliding_window max_window_layers",
        "no layer has a window unless use_sliding_window is set",
    ),
    Idle("qwen?_layer_types", "max_window_layers", "the list of layer types says it"),
    Idle("smollm3_layer_types", "use_sliding_window", "the list of layer types says it"),
    Idle("smollm3*", "no_rope_layer_interval", "the list of layers with a rope says it"),
    Idle(
        "falcon_yarn gpt_neox_yarn phi_yarn stablelm_yarn",
        "*.beta_fast *.original_max_position_embeddings",
        "moves a border by less than the whole feature that it is rounded to",
    ),
    Idle(
        "hunyuan_v1_dense*alpha hunyuan_v1_moe_old",
        "*.beta_fast *.beta_slow *.factor *.mscale *.mscale_all_dim",
        "an alpha in the dict goes before everything else in it",
    ),
    Idle("qwen3_5*", "*.mrope_section *.mrope_interleaved", "text has one position a token, not one an axis"),
    Idle("bloom_in_parts", "pretraining_tp", "cuts the same products into other pieces"),
    Idle("cohere_compass_text", "*.mrope_section", "of images; text has one position"),
    Idle(
        "cohere_compass_text_bias_untied",
        "rope_parameters.rope_theta rope_parameters.rope_type",
        "left over in published files, where each layer type has its own",
    ),
    Idle("dots3_note_text*", "*.partial_rotary_factor", "follows from the sizes of a head, whatever it says"),
    Idle("doge_old doge_window doge_moe*", "keep_window_size", "more than a query sees"),
    Idle("mpt*", "*.attn_impl", "another way to compute the same"),
    Idle("modernbert_decoder_old", "local_attention", "sliding_window says it"),
    Idle("granite_swa granitemoe_swa", "*.rope_theta", "the list of bases of the layers says it"),
    Idle("deepseek_v2_bare", "intermediate_size", "every layer is a mixture"),
    Idle(
        "nemotron_h_latent",
        "head_dim num_attention_heads num_key_value_heads intermediate_size",
        "no layer is attention, and none a feed-forward layer alone",
    ),
    Idle(
        "nemotron_h_pattern",
        "n_routed_experts num_experts_per_tok moe_* n_group topk_group routed_scaling_factor",
        "no layer is a mixture",
    ),
    Idle("zaya_window", "rope_parameters.rope_type", "left over in published files, beside one of each layer type"),
    Idle("gpt_neo_global", "window_size", "no layer is local"),
    Idle("gpt_neo_layers", "attention_types", "the list of layers says it"),
    Idle("zamba2 zamba2_old", "num_mem_blocks", "no more blocks than layers that are fed, however many there may be"),
)
