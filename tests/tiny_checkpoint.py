"""Checkpoints made on the spot for tests of the front: a golden as a directory, and a small model that can chat."""

import json
from pathlib import Path

import tokenizers
from helpers import read_golden
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers

from forge_jax import Forge, ForgeConfig

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>")
LETTERS = ("Ċ", "Ġ", *map(chr, range(0x21, 0x7F)))  # newline, space and printable ASCII, as byte-level BPE writes them


def write_golden_directory(name: str, directory: Path) -> Path:
    """A golden's config and weights as a HuggingFace directory; it has no tokenizer."""
    golden = read_golden(name)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(golden.config))
    save_file(golden.arrays, directory / "model.safetensors")
    return directory


def write_chat_model(directory: Path, *, context: int = 512) -> Path:
    """A model with random weights, a token a character, and a chat template. Every text it makes is read as it was
    made, so the ids of an answer come again when the conversation is encoded."""
    size = len(SPECIAL) + len(LETTERS)
    model = Forge(config=ForgeConfig(size, dim=32, n_layers=2, n_heads=2, n_kv_heads=1, max_seq_len=context, dropout=0))
    model.save_pretrained(directory)
    return write_tokenizer(directory)


def write_tokenizer(directory: Path) -> Path:
    """A tokenizer in the directory of a model, a token a character, and a chat template."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *LETTERS))}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "chat_template": TEMPLATE})
    )
    return directory
