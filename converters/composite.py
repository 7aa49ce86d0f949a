"""The language model inside a checkpoint that also sees or hears.

Such a config nests the language model's in `text_config`, and its tensors stand beside those of towers and projectors.
What is read here is the language model alone; the tensors that are left out are told apart by their names and counted,
never ignored in silence. Knows how the parts are called, and no part's mathematics.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from converters.source import TensorSource, View
from forge_jax.tensor import QTensor

# the type of the composite -> that of its language model where text_config does not say it
TYPES: Mapping[str, str] = {
    "apertus1p5": "apertus1p5_text",
    "aya_vision": "cohere2",
    "dots3_note": "dots3_note_text",
    "emu3": "emu3_text_model",
    "fuyu": "persimmon",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "got_ocr2": "qwen2",
    "idefics3": "llama",
    "inkling2": "inkling2_text",
    "inkling2_loop": "inkling2_loop_text",
    "inkling_mm_model": "inkling_text",
    "internvl": "qwen2",
    "lfm2_vl": "lfm2",
    "llama4": "llama4_text",
    "llava": "llama",
    "llava_next": "llama",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "mistral3": "mistral",
    "phi4_multimodal": "phi3",
    "qwen2_5_vl": "qwen2",
    "qwen2_audio": "qwen2",
    "qwen2_vl": "qwen2",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
    "qwen4_exp": "qwen4_exp_text",
    "smolvlm": "llama",
    "voxtral": "llama",
}
# a language model that differs from another only in positions along several axes, which are one for text
SAME = {
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_vl_text": "qwen3",
}
TIE = "tie_word_embeddings"
AXES = ("mrope_section", "mrope_interleaved")

# how the language model's names begin in the composite -> in a checkpoint of its own; the first that fits is taken
PREFIXES = (
    ("language_model.", ""),
    ("model.language_model.", "model."),
    ("model.text_model.", "model."),
    ("text_model.model.", "model."),
    ("text_model.lm_head.", "lm_head."),
    ("text_model.", "model."),
)
TOWERS = (
    "audio.",
    "audio_adapter.",
    "audio_encoder.",
    "audio_tokenizer.",
    "audio_tower.",
    "connector.",
    "embed_audio.",
    "embed_tokens_extend.",
    "embed_vision.",
    "image_newline",
    "multi_modal_projector.",
    "patch_merge_mlp.",
    "vision_embed_tokens.",
    "vision_encoder.",
    "vision_model.",
    "vision_tokenizer.",
    "vision_tower.",
    "visual.",
    "vqmodel.",
)
NESTED = ("vision_config", "audio_config", "vq_config")  # of the parts that are left out
MARKERS = (
    "audio_token_index",
    "image_token_id",
    "image_token_index",
    "video_token_id",
    "vision_end_token_id",
    "vision_start_token_id",
    "vision_token_id",
)
"""Ids that stand for what another part gives, in configs that nest only the other parts."""


class Part(View):
    """The tensors of the language model alone, under the names that they have in a checkpoint of its own."""

    def __init__(self, whole: TensorSource) -> None:
        self.names = {own: name for name in whole.tensors if (own := own_name(name)) is not None}
        super().__init__(whole, {own: replace(whole.tensors[name], name=own) for own, name in self.names.items()})
        kept = set(self.names.values())
        self.left_out = tuple(name for name in whole.tensors if name not in kept)

    def raw(self, name: str) -> np.ndarray:
        """The stored bytes of one tensor."""
        return self.whole.raw(self.names[name])

    def decode(self, name: str, raw: np.ndarray) -> np.ndarray:
        """The values of one tensor from its bytes."""
        return self.whole.decode(self.names[name], raw)

    def packed(self, name: str, raw: np.ndarray) -> np.ndarray | QTensor:
        """The values of one tensor from its bytes, packed if they are."""
        return self.whole.packed(self.names[name], raw)


def is_composite(config: Mapping[str, Any]) -> bool:
    """Whether a config describes a model with parts."""
    return config.get("model_type") in TYPES and any(key in config for key in ("text_config", *NESTED))


def own_name(name: str) -> str | None:
    """The name of a tensor in a checkpoint of the language model alone; None for a tensor of another part."""
    if name.removeprefix("model.").startswith(TOWERS):
        return None
    return next((own + name.removeprefix(prefix) for prefix, own in PREFIXES if name.startswith(prefix)), name)


def text_config(config: Mapping[str, Any], where: str, head: bool = True) -> dict[str, Any]:
    """The config of the language model in a composite, as if it stood alone.

    What is said of the other parts is not read. A flag that ties the head may stand on either level; where the two
    differ, `head` decides: whether the checkpoint has one. Ropes over several axes are those of one axis for text.

    Raises:
        ValueError: text_config is no dict.
    """
    text = config.get("text_config")
    if text is None:
        text = {k: v for k, v in config.items() if k not in (*NESTED, *MARKERS, "model_type")}
    if not isinstance(text, Mapping):
        raise ValueError(f"{where}: text_config is {type(text).__name__}, expected a dict")
    kind = text.get("model_type") or TYPES[config["model_type"]]
    outer = {key: config[key] for key in (TIE, "dtype", "torch_dtype") if key in config}
    out: dict[str, Any] = outer | dict(text) | {"model_type": SAME.get(kind, kind)}
    if out.get(TIE) != outer.get(TIE, out.get(TIE)):
        out[TIE] = not head
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(rope := out.get(key), Mapping):
            out[key] = {k: v for k, v in rope.items() if k not in AXES} or None
    return out
