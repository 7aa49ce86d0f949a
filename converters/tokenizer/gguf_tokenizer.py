"""A tokenizer from the metadata of a GGUF file: one builder for each value of tokenizer.ggml.model.

Gives the ids that llama.cpp gives. Knows which algorithm a model kind means and how its tokens are spelled.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from os import PathLike
from types import MappingProxyType
from typing import Any

import numpy as np
import tokenizers

from converters.tokenizer.base import Lexicon, Tokenizer
from converters.tokenizer.bpe import BpeSegmenter, build_bpe, byte_level_piece, parse_merges
from converters.tokenizer.charsmap import SpaceNormalizer
from converters.tokenizer.export_hf import (
    config_of,
    describe_vocab,
    save_json_tokenizer,
    spm_bpe_backend,
    unigram_backend,
)
from converters.tokenizer.gguf_vocab import Defaults, GgufVocab, Keys, read_templates, read_vocab, roles_of
from converters.tokenizer.legacy import build_wordpiece
from converters.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from converters.tokenizer.segmenters import LongestMatch, Normalised, Segmenter
from converters.tokenizer.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    NormalizerSpec,
)
from converters.tokenizer.spm import merge_segmenter, parse_byte, path_segmenter, spell
from converters.tokenizer.vocab_tokenizer import Frame, Origin, VocabTokenizer

_VERBATIM = (CONTROL, UNKNOWN, USER_DEFINED)


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
            f"GGUF metadata: tokenizer.ggml.model is {model!r}, which is not known; "
            f"known: {', '.join(sorted(_BUILDERS))}"
        )
    return _BUILDERS[model](keys)


def _assemble(
    vocab: GgufVocab,
    pieces: tuple[bytes, ...],
    segment: Segmenter,
    frame: Frame,
    backend: Callable[[], tokenizers.Tokenizer],
    lead: int = 0,
) -> Tokenizer:
    """The tokenizer; `backend` builds its plain part for a tokenizer.json."""
    roles = roles_of(vocab)

    def save(directory: str | PathLike[str], tokenizer: Tokenizer) -> list[str]:
        description = describe_vocab(backend(), frame, vocab.tokens)
        return save_json_tokenizer(directory, description, config_of(roles), tokenizer.chat_templates)

    lexicon = Lexicon(vocab.tokens, pieces, lead)
    return VocabTokenizer(
        lexicon, roles, read_templates(vocab.keys), segment, frame, Origin(save, lambda _: dict(vocab.keys.all))
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
    vocab = read_vocab(keys, Defaults(bos=1, eos=2, unk=0, add_bos=True))
    prefix = keys.flag("add_space_prefix", True)
    types = vocab.types.tolist()
    segment = merge_segmenter(
        vocab.tokens, vocab.scores.tolist(), types, vocab.special["unk"], freeze=False, fuse=False
    )
    return _assemble(
        vocab,
        spell(vocab.tokens, types, _VERBATIM),
        Normalised(lambda text, first: (" " * (prefix and first) + text).replace(" ", "▁"), segment),
        _frame(vocab, [vocab.add("bos")], [vocab.add("eos")]),
        lambda: spm_bpe_backend(vocab.ids, _mergeable(vocab), _unk_token(vocab), space_prefix=prefix),
        lead=int(prefix),
    )


def _mergeable(vocab: GgufVocab) -> dict[str, float]:
    return {token: float(vocab.scores[i]) for token, i in vocab.of_type(NORMAL, USER_DEFINED, 0).items()}


def _unk_token(vocab: GgufVocab) -> str | None:
    unk = vocab.special["unk"]
    return None if unk is None else vocab.tokens[unk]


def _build_unigram(keys: Keys) -> Tokenizer:
    """Sentencepiece unigram with its normaliser (T5, UMT5, XLM-R)."""
    vocab = read_vocab(keys, Defaults(eos=1, unk=2, pad=0, add_eos=True))
    charsmap = keys.numbers("precompiled_charsmap", np.uint8)
    spec = NormalizerSpec(
        charsmap=b"" if charsmap is None else charsmap.tobytes(),
        add_dummy_prefix=keys.flag("add_space_prefix", False),
        remove_extra_whitespaces=keys.flag("remove_extra_whitespaces", False),
    )
    types = vocab.types.tolist()
    segment = path_segmenter(vocab.tokens, vocab.scores.tolist(), types, vocab.special["unk"], user_bonus=0.0)
    return _assemble(
        vocab,
        spell(vocab.tokens, types, _VERBATIM),
        Normalised(SpaceNormalizer(spec, vocab.of_type(USER_DEFINED)), segment),
        _frame(vocab, [vocab.add("bos")], [vocab.add("eos")]),
        lambda: unigram_backend(
            vocab.tokens, vocab.scores.tolist(), vocab.special["unk"], spec, byte_fallback=BYTE in types
        ),
        lead=int(spec.add_dummy_prefix or spec.remove_extra_whitespaces),
    )


def _build_wordpiece(keys: Keys) -> Tokenizer:
    """BERT's WordPiece: "▁" begins a word, other tokens continue one."""
    vocab = read_vocab(keys, Defaults(bos=101, unk=100, sep=102, pad=0, mask=103))
    if vocab.special["unk"] is None:
        raise ValueError("GGUF metadata: tokenizer.ggml.unknown_token_id is not set, WordPiece cannot do without")
    normal = vocab.of_type(NORMAL, UNUSED, 0)
    names = {token: token[1:] if token.startswith("▁") else "##" + token for token in normal}
    ids = {names.get(token, token): i for token, i in vocab.ids.items()}
    lowercase = keys.flag("normalizer.lowercase", True)
    backend = build_wordpiece(
        ids,
        vocab.tokens[vocab.special["unk"]],
        lowercase=lowercase,
        strip_accents=keys.flag("normalizer.strip_accents", lowercase),
    )
    return _assemble(
        vocab,
        spell(vocab.tokens, vocab.types.tolist(), _VERBATIM),
        lambda text, first: backend.encode(text, add_special_tokens=False).ids,
        _frame(vocab, [vocab.special["bos"]], [vocab.special["sep"]]),
        lambda: tokenizers.Tokenizer.from_str(backend.to_str()),
        lead=1,
    )


def _build_rwkv(keys: Keys) -> Tokenizer:
    """RWKV: byte strings, the longest match wins."""
    vocab = read_vocab(keys, Defaults())
    pieces = tuple(_unescape(token) for token in vocab.tokens)
    return _assemble(
        vocab,
        pieces,
        LongestMatch({piece: i for i, piece in enumerate(pieces)}, vocab.special["unk"]),
        _frame(vocab, [], []),
        _no_backend,
    )


def _no_backend() -> tokenizers.Tokenizer:
    raise ValueError("a tokenizer.json cannot describe an RWKV vocabulary; keep the GGUF file")


def _unescape(token: str) -> bytes:
    """A token of an RWKV vocabulary: backslash escapes stand for bytes."""
    plain = {"t": b"\t", "n": b"\n", "r": b"\r"}

    def byte(match: re.Match[bytes]) -> bytes:
        code = match[1].decode("latin-1")
        return bytes.fromhex(code[1:]) if len(code) == 3 else plain.get(code, match[1])

    return re.sub(rb"\\(x[0-9a-fA-F]{2}|.)", byte, token.encode("utf-8", "surrogateescape"), flags=re.DOTALL)


def _build_bpe(keys: Keys) -> Tokenizer:
    """Byte-level BPE with a named pre-tokenizer."""
    if "tokenizer.ggml.pre" not in keys.all:
        warnings.warn(
            "the GGUF file does not name its pre-tokenizer (tokenizer.ggml.pre): 'default' is used, "
            "which may cut text otherwise than the model has learnt; convert the model again",
            UserWarning,
            stacklevel=4,
        )
    return _build_named_bpe(keys, keys.text("tokenizer.ggml.pre", "default"))


def _build_gemma4(keys: Keys) -> Tokenizer:
    """BPE over plain text with byte fallback."""
    return _build_named_bpe(keys, "gemma4")


def _build_named_bpe(keys: Keys, name: str) -> Tokenizer:
    if name not in PRE_TOKENIZERS:
        raise ValueError(
            f"GGUF metadata: tokenizer.ggml.pre is {name!r}, which is not known; "
            f"known: {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    rules = PRE_TOKENIZERS[name]
    vocab = read_vocab(keys, Defaults(add_bos=rules.add_bos))
    tokenizer = build_bpe(vocab.ids, parse_merges(keys.strings("merges")), rules)
    frame = _frame(vocab, [vocab.add("bos")], [vocab.add("eos")])

    def backend() -> tokenizers.Tokenizer:
        if rules.whole_newlines:
            raise ValueError(f"a tokenizer.json cannot describe the pre-tokenizer {name!r}; keep the GGUF file")
        return tokenizers.Tokenizer.from_str(tokenizer.to_str())

    return _assemble(vocab, _bpe_pieces(vocab, rules), BpeSegmenter(tokenizer, vocab.ids, rules), frame, backend)


def _bpe_pieces(vocab: GgufVocab, rules: PreTokenizer) -> tuple[bytes, ...]:
    if rules.raw:
        return spell(vocab.tokens, vocab.types.tolist(), _VERBATIM)
    return tuple(
        parse_byte(token)
        if kind == BYTE
        else token.encode("utf-8", "surrogateescape")
        if kind in _VERBATIM
        else byte_level_piece(token)
        for token, kind in zip(vocab.tokens, vocab.types.tolist(), strict=True)
    )


_BUILDERS: Mapping[str, Callable[[Keys], Tokenizer]] = MappingProxyType(
    {
        "llama": _build_spm,
        "gpt2": _build_bpe,
        "gemma4": _build_gemma4,
        "bert": _build_wordpiece,
        "t5": _build_unigram,
        "rwkv": _build_rwkv,
    }
)
