"""Vocabularies from before tokenizer.json: vocab.json with merges.txt (GPT-2), vocab.txt (BERT).

Builds the objects of the tokenizers package that the models of those files use. Knows the files' own layout only.
"""

from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from converters.files import read_json
from converters.tokenizer.bpe import check_merges, parse_merges
from converters.tokenizer.settings import Settings

_LONGEST_WORD = 100


def read_gpt2(vocab: Path, merges: Path, settings: Settings) -> tokenizers.Tokenizer:
    """Byte-level BPE as GPT-2 does it. ValueError for files that do not fit together."""
    ids = read_json(vocab)
    if not isinstance(ids, dict) or not all(type(i) is int and 0 <= i < 1 << 31 for i in ids.values()):
        raise ValueError(f"{vocab}: expected an object of token → id")
    lines = [line for line in _lines(merges) if line and not line.startswith("#version")]
    try:
        pairs = parse_merges(lines)
        check_merges(pairs, ids)
    except ValueError as error:
        raise ValueError(f"{merges}: {error}") from error
    unk = settings.token("unk_token")
    model = models.BPE(vocab=ids, merges=pairs, unk_token=unk if unk in ids else None, fuse_unk=False)
    tokenizer = tokenizers.Tokenizer(model)
    prefix = bool(settings.tokenizer.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def read_wordpiece(vocab: Path, settings: Settings) -> tokenizers.Tokenizer:
    """WordPiece as BERT does it: one token a line, the line's number is the id. ValueError for a repeated token."""
    ids: dict[str, int] = {}
    for i, line in enumerate(_lines(vocab)):
        token = line.rstrip("\r")
        if ids.setdefault(token, i) != i:
            raise ValueError(f"{vocab}: {token!r} stands in lines {ids[token] + 1} and {i + 1}")
    config = settings.tokenizer
    unk = settings.token("unk_token") or "[UNK]"
    if unk not in ids:
        raise ValueError(f"{vocab}: the unknown token {unk!r} is not in it")
    tokenizer = build_wordpiece(
        ids,
        unk,
        lowercase=bool(config.get("do_lower_case", True)),
        strip_accents=config.get("strip_accents"),
        chinese=bool(config.get("tokenize_chinese_chars", True)),
    )
    cls, sep = settings.token("cls_token") or "[CLS]", settings.token("sep_token") or "[SEP]"
    if cls in ids and sep in ids:
        tokenizer.post_processor = processors.BertProcessing((sep, ids[sep]), (cls, ids[cls]))
        special = [unk, cls, sep, settings.token("pad_token") or "[PAD]", settings.token("mask_token") or "[MASK]"]
        tokenizer.add_special_tokens([tokenizers.AddedToken(text, normalized=False) for text in special if text in ids])
    return tokenizer


def build_wordpiece(
    ids: Mapping[str, int], unk: str, *, lowercase: bool, strip_accents: bool | None, chinese: bool = True
) -> tokenizers.Tokenizer:
    """The WordPiece object of BERT without anything around a text."""
    model = models.WordPiece(vocab=dict(ids), unk_token=unk, max_input_chars_per_word=_LONGEST_WORD)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer


def _lines(file: Path) -> list[str]:
    """The lines of a text file: only a newline ends one, since tokens may hold every other separator."""
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text: {error}") from error
    return lines[:-1] if lines and not lines[-1] else lines
