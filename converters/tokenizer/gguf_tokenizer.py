"""A tokenizer from the metadata of a GGUF file: one builder for each value of tokenizer.ggml.model.

Gives the ids that llama.cpp gives. Knows which algorithm a model kind means and how its tokens are spelled.
"""

from collections.abc import Callable, Mapping
from os import PathLike
from types import MappingProxyType
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from converters.tokenizer.base import Lexicon, Tokenizer
from converters.tokenizer.bpe import BpeSegmenter, build_bpe, byte_level_piece, parse_merges
from converters.tokenizer.gguf_vocab import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Defaults,
    GgufVocab,
    Keys,
    byte_ids,
    parse_byte,
    read_templates,
    read_vocab,
    roles_of,
    spell,
)
from converters.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from converters.tokenizer.segmenters import (
    BestPath,
    Fallback,
    LongestMatch,
    Normalised,
    ScoreMerges,
    Segmenter,
)
from converters.tokenizer.vocab_tokenizer import Frame, Origin, VocabTokenizer

_UNKNOWN_PENALTY = 10.0
_LONGEST_WORD = 100


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file, from its metadata (`open_gguf(path).metadata`).

    Raises:
        ValueError: there is no vocabulary, its kind or pre-tokenizer is not known (the message lists those that are),
            or its arrays do not fit together.
    """
    keys = Keys(metadata)
    if not keys.all:
        raise ValueError("GGUF metadata: no tokenizer.* keys, the file holds no vocabulary; load a tokenizer directory")
    model = keys.text("tokenizer.ggml.model")
    if model in ("none", "no_vocab"):
        raise ValueError(
            f"GGUF metadata: tokenizer.ggml.model is {model!r}, the file was written without a vocabulary; "
            "load the tokenizer from the directory the model came from"
        )
    if model not in _BUILDERS:
        raise ValueError(
            f"GGUF metadata: tokenizer.ggml.model is {model!r}, which is not known; known: {', '.join(sorted(_BUILDERS))}"
        )
    return _BUILDERS[model](keys)


def _assemble(
    vocab: GgufVocab, pieces: tuple[bytes, ...], segment: Segmenter, frame: Frame, lead: int = 0
) -> Tokenizer:
    def save(directory: str | PathLike[str], tokenizer: Tokenizer) -> list[str]:
        raise NotImplementedError

    return VocabTokenizer(
        Lexicon(vocab.tokens, pieces, lead),
        roles_of(vocab),
        read_templates(vocab.keys),
        segment,
        frame,
        Origin(save, lambda tokenizer: dict(vocab.keys.all)),
    )


def _frame(vocab: GgufVocab, before: list[int | None], after: list[int | None]) -> Frame:
    control = vocab.of_type(CONTROL, UNKNOWN)
    always = vocab.of_type(USER_DEFINED)
    trim_left: frozenset[int] = frozenset()
    trim_right: frozenset[int] = frozenset()
    # GGUF cannot say that a token swallows the whitespace beside it; llama.cpp goes by these names.
    if any(name in vocab.keys.model_name for name in ("phi-3", "phi3")):
        kept = ("<unk>", "<s>", "<|endoftext|>")
        trim_right = frozenset(i for token, i in {**control, **always}.items() if token not in kept)
    pre = str(vocab.keys.all.get("tokenizer.ggml.pre", ""))
    masks = {"jina-v2-de": "<mask>", "jina-v2-es": "<mask>", "jina-v2-code": "<mask>", "modern-bert": "[MASK]"}
    if pre in masks and masks[pre] in vocab.ids:
        trim_left = frozenset([vocab.ids[masks[pre]]])
    return Frame(
        before=tuple(i for i in before if i is not None),
        after=tuple(i for i in after if i is not None),
        control=control,
        always=always,
        trim_left=trim_left,
        trim_right=trim_right,
    )


def _build_spm(keys: Keys) -> Tokenizer:
    """Sentencepiece BPE: merges by score, byte fallback."""
    vocab = read_vocab(keys, Defaults(bos=1, eos=2, unk=0, add_bos=True, space_prefix=True))
    prefix = keys.flag("add_space_prefix", True)
    usable = vocab.of_type(NORMAL, USER_DEFINED, UNUSED, 0)
    bytes_ = byte_ids(vocab.ids)
    mergeable = {token: float(vocab.scores[i]) for token, i in usable.items() if i not in set(bytes_.values())}
    final = {token: i for token, i in usable.items() if token in mergeable and vocab.types[i] != UNUSED}
    segment = ScoreMerges(mergeable, final, Fallback(bytes_, vocab.special["unk"], fuse=False), {})
    return _assemble(
        vocab,
        spell(vocab.tokens, vocab.types.tolist()),
        Normalised(lambda text, first: (" " * (prefix and first) + text).replace(" ", "▁"), segment),
        _frame(vocab, [vocab.add("bos")], [vocab.add("eos")]),
        lead=int(prefix),
    )


def _build_bpe(keys: Keys) -> Tokenizer:
    """Byte-level BPE with a named pre-tokenizer."""
    return _build_named_bpe(keys, keys.text("tokenizer.ggml.pre", "default"))


def _build_gemma4(keys: Keys) -> Tokenizer:
    """BPE over plain text with byte fallback."""
    return _build_named_bpe(keys, "gemma4")


def _build_named_bpe(keys: Keys, name: str) -> Tokenizer:
    if name not in PRE_TOKENIZERS:
        raise ValueError(
            f"GGUF metadata: tokenizer.ggml.pre is {name!r}, which is not known; known: {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    rules = PRE_TOKENIZERS[name]
    vocab = read_vocab(keys, Defaults(add_bos=rules.add_bos, add_sep=rules.add_sep))
    tokenizer = build_bpe(vocab.ids, parse_merges(keys.strings("merges")), rules)
    frame = _frame(vocab, [vocab.add("bos")], [vocab.add("eos"), vocab.add("sep")])
    return _assemble(vocab, _bpe_pieces(vocab, rules), BpeSegmenter(tokenizer, vocab.ids, rules), frame)


def _bpe_pieces(vocab: GgufVocab, rules: PreTokenizer) -> tuple[bytes, ...]:
    if rules.raw:
        return spell(vocab.tokens, vocab.types.tolist())
    literal = (CONTROL, UNKNOWN, USER_DEFINED)
    return tuple(
        parse_byte(token)
        if kind == BYTE
        else token.encode("utf-8", "surrogateescape")
        if kind in literal
        else byte_level_piece(token)
        for token, kind in zip(vocab.tokens, vocab.types.tolist(), strict=True)
    )


_BUILDERS: Mapping[str, Callable[[Keys], Tokenizer]] = MappingProxyType(
    {"llama": _build_spm, "gpt2": _build_bpe, "gemma4": _build_gemma4}
)
