"""Architectures whose models come with code of their own, or are the text part of models that also see; see `archs`."""

from collections.abc import Mapping
from dataclasses import replace

from converters.gguf.arch import ATTENTION_BIAS, RMS, Arch
from converters.gguf.archs_dense import DENSE
from converters.gguf.archs_experts import MIXTURES

HUB: Mapping[str, Arch] = {
    # positions along several axes, which are one for text
    "qwen2vl": replace(DENSE["qwen2"], alias=True),
    "qwen3vl": replace(DENSE["qwen3"], alias=True),
    "qwen3vlmoe": replace(MIXTURES["qwen3moe"], alias=True),
    "paddleocr": Arch("llama", RMS, alias=True, present=ATTENTION_BIAS),
    "hunyuan_vl": replace(DENSE["hunyuan-dense"], alias=True),
}
