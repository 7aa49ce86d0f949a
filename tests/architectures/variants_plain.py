"""Variants of families that are another one with other defaults or names. Data only; see variants_a.py."""

from typing import Any

from variants_a import COMMON, SIZES, model, old, without
from variants_b import GPT_TINY

Config = dict[str, Any]

EMU3 = model("emu3_text_model", without(COMMON, "head_dim"))

VARIANTS: dict[str, Config] = {
    "emu3_text_model": EMU3,
    "emu3_text_model_bias": EMU3 | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    "emu3_text_model_tied": old(EMU3, rope_scaling=None, tie_word_embeddings=True),
    "emu3_text_model_bare": model("emu3_text_model", SIZES, {"num_attention_heads": 8}),
    "gpt_sw3": model("gpt-sw3", GPT_TINY, {"layer_norm_epsilon": 1e-3, "n_inner": 56}),
}
