"""Tokenizers written as the tokenizer.* metadata of a GGUF file.

Knows what GGUF can say of a tokenizer. What it cannot say is refused, with the part that is in the way; nothing that
would change ids is left out in silence.
"""

import base64
import json
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from converters.tokenizer.base import Tokenizer
from converters.tokenizer.pretokenizers import GPT2_PATTERN, PRE_TOKENIZERS
from converters.tokenizer.segmenters import Segmenter
from converters.tokenizer.sentencepiece_model import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
)
from converters.tokenizer.spm import merge_segmenter
from converters.tokenizer.vocab_tokenizer import Frame

_UNREACHABLE_SCORE = -1e9
_PROBES = 1000
_CONTRACTION_SPELLED_OUT = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def _shared(tokenizer: Tokenizer, before: Sequence[int], after: Sequence[int]) -> dict[str, Any]:
    """What every kind of vocabulary says: ids with a role, what goes around a text, chat templates."""
    ends = tokenizer.eos_ids
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ends[0] if ends else None,
        "eot_token_id": ends[1] if len(ends) > 1 else None,
        "padding_token_id": tokenizer.pad_id,
        "unknown_token_id": tokenizer.unk_id,
    }
    if list(before) not in ([], [tokenizer.bos_id]) or list(after) not in ([], list(ends[:1])):
        raise ValueError(
            f"GGUF cannot say that the ids {list(before)} and {list(after)} go around a text, only BOS and EOS"
        )
    metadata: dict[str, Any] = {f"tokenizer.ggml.{key}": i for key, i in ids.items() if i is not None}
    metadata["tokenizer.ggml.add_bos_token"] = bool(before)
    metadata["tokenizer.ggml.add_eos_token"] = bool(after)
    for name, source in tokenizer.chat_templates.items():
        metadata["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = source
    return metadata


def sentencepiece_metadata(
    tokenizer: Tokenizer, *, model: SentencePieceModel, types: Sequence[int], frame: Frame
) -> dict[str, Any]:
    """GGUF metadata of a sentencepiece model."""
    scores = [*model.scores, *([_UNREACHABLE_SCORE] * (tokenizer.vocab_size - len(model.scores)))]
    spec = model.normalizer
    if not spec.escape_whitespaces or spec.whitespace_as_suffix:
        raise ValueError("GGUF cannot say that spaces are not escaped, or that they end a word")
    metadata = {
        "tokenizer.ggml.model": "llama" if model.algorithm == BPE else "t5",
        "tokenizer.ggml.tokens": [tokenizer.id_to_token(i) for i in range(tokenizer.vocab_size)],
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.add_space_prefix": spec.add_dummy_prefix,
        **_shared(tokenizer, frame.before, frame.after),
    }
    if model.algorithm == BPE and (spec.remove_extra_whitespaces or spec.charsmap):
        raise ValueError("GGUF cannot say that a BPE model normalises its text; only unigram models may")
    if model.algorithm != BPE:
        metadata["tokenizer.ggml.remove_extra_whitespaces"] = spec.remove_extra_whitespaces
        if spec.charsmap:
            metadata["tokenizer.ggml.precompiled_charsmap"] = np.frombuffer(spec.charsmap, np.uint8)
    return metadata


def json_metadata(tokenizer: Tokenizer, description: Mapping[str, Any], around: Sequence[int]) -> dict[str, Any]:
    """GGUF metadata of a tokenizer.json.

    Args:
        description: the parsed tokenizer.json.
        around: the ids of an empty text.

    Raises:
        ValueError: a model, normaliser or pre-tokenizer that GGUF has no word for.
    """
    kinds: Mapping[str, Callable[..., dict[str, Any]]] = {"BPE": _bpe, "Unigram": _unigram, "WordPiece": _word_piece}
    kind = description["model"].get("type")
    if kind not in kinds:
        raise ValueError(f"GGUF has no vocabulary like tokenizer.json's model {kind!r}; it knows {', '.join(kinds)}")
    _warn_of_flags(description)
    types = _types(tokenizer, description)
    return {
        "tokenizer.ggml.tokens": [_name(tokenizer, i) for i in range(tokenizer.vocab_size)],
        "tokenizer.ggml.token_type": types,
        **kinds[kind](tokenizer, description, types, list(around)),
    }


def _name(tokenizer: Tokenizer, i: int) -> str:
    try:
        return tokenizer.id_to_token(i)
    except ValueError:  # an id that is not in use
        return f"[PAD{i}]"


def _types(tokenizer: Tokenizer, description: Mapping[str, Any]) -> np.ndarray:
    types = np.full(tokenizer.vocab_size, NORMAL, np.int32)
    for i in range(tokenizer.vocab_size):
        if tokenizer.token_to_id(_name(tokenizer, i)) != i:
            types[i] = UNUSED
    for token in description.get("added_tokens", ()):
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if description["model"].get("byte_fallback"):
        for byte in range(256):
            if (i := tokenizer.token_to_id(f"<0x{byte:02X}>")) is not None:
                types[i] = BYTE
    return types


def _warn_of_flags(description: Mapping[str, Any]) -> None:
    """GGUF has no place for a token's flags: say so, since text beside such a token will be cut differently."""
    flags = ("lstrip", "rstrip", "single_word")
    flagged = [token["content"] for token in description.get("added_tokens", ()) if any(token[flag] for flag in flags)]
    if flagged:
        _warn(f"{len(flagged)} added tokens swallow spaces or stand alone: {', '.join(flagged[:5])}")


def _warn(what: str) -> None:
    warnings.warn(
        f"GGUF cannot say that {what}: such texts get other ids from the GGUF file", UserWarning, stacklevel=2
    )


def _split_frame(tokenizer: Tokenizer, around: list[int]) -> tuple[list[int], list[int]]:
    """The ids of an empty text, cut into those before and those behind it."""
    cut = 1 if around and around[0] == tokenizer.bos_id else 0
    return around[:cut], around[cut:]


def _bpe(tokenizer: Tokenizer, description: Mapping[str, Any], types: np.ndarray, around: list[int]) -> dict[str, Any]:
    model = description["model"]
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ValueError(f"GGUF has no word for a BPE model with {key} {model[key]!r}")
    steps = _flatten(description.get("pre_tokenizer"), "pretokenizers")
    shared = _shared(tokenizer, *_split_frame(tokenizer, around))
    if not any(step["type"] == "ByteLevel" for step in steps):
        return _spm(tokenizer, description, types) | shared
    normalizers = _flatten(description.get("normalizer"), "normalizers")
    if any(step["type"] != "NFC" for step in normalizers):  # llama.cpp's converters leave NFC out as well
        raise ValueError(f"GGUF has no word for the normaliser {json.dumps(description['normalizer'])}")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_name(steps, bool(model.get("ignore_merges"))),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in pairs],
        **shared,
    }


def _flatten(step: Mapping[str, Any] | None, parts: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    return [step] if step["type"] != "Sequence" else [one for part in step[parts] for one in _flatten(part, parts)]


def _pre_name(steps: Sequence[Mapping[str, Any]], ignore_merges: bool) -> str:
    """The name that GGUF has for a byte-level pre-tokenizer.

    Raises:
        ValueError: none of the known ones has these patterns.
    """
    patterns = tuple(pattern for step in steps for pattern in _patterns(step))
    for name, rules in PRE_TOKENIZERS.items():
        known = tuple(map(_canonical, rules.patterns))
        if known == patterns and rules.ignore_merges == ignore_merges and not rules.raw:
            return name
    raise ValueError(f"GGUF has no name for a pre-tokenizer with ignore_merges {ignore_merges} and {patterns}")


def _patterns(step: Mapping[str, Any]) -> list[str]:
    """The regexes that cut a text as a pre-tokenizer does."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return [_canonical(GPT2_PATTERN)] if step.get("use_regex", True) else []
        case {"type": "Digits", "individual_digits": individual}:
            return [r"\p{N}" if individual else r"\p{N}+"]
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return [_canonical(pattern)]
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}:
            return [_canonical(pattern)]
    raise ValueError(f"GGUF has no word for the pre-tokenizer {json.dumps(step)}")


def _canonical(pattern: str) -> str:
    """Ways to write the same regex made one."""
    pattern = pattern.replace("\n", r"\n").replace("\r", r"\r")
    return pattern.replace(_CONTRACTION_SPELLED_OUT, _CONTRACTION)


def _spm(tokenizer: Tokenizer, description: Mapping[str, Any], types: np.ndarray) -> dict[str, Any]:
    """Merges turned into scores: the earlier a merge, the better the token it gives.

    Raises:
        ValueError: scores would put tokens together in other ways than the merges do.
    """
    model = description["model"]
    if not model.get("byte_fallback"):
        raise ValueError("GGUF has no word for a BPE model without byte-level or byte fallback")
    steps = _flatten(description.get("normalizer"), "normalizers") + _flatten(
        description.get("pre_tokenizer"), "pretokenizers"
    )
    prefix = any(_adds_prefix(step) for step in steps)
    scores = np.full(tokenizer.vocab_size, _UNREACHABLE_SCORE, np.float32)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    for rank, (left, right) in reversed(list(enumerate(pairs))):
        scores[model["vocab"][left + right]] = -rank
    tokens = [_name(tokenizer, i) for i in range(tokenizer.vocab_size)]
    if tokenizer.unk_id is not None:
        types[tokenizer.unk_id] = UNKNOWN
    segment = merge_segmenter(tokens, scores.tolist(), types.tolist(), tokenizer.unk_id, freeze=False, fuse=True)
    _compare(tokenizer, segment, tokens, types)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _adds_prefix(step: Mapping[str, Any]) -> bool:
    """Whether a step of an SPM-like tokenizer.json puts a space in front; ValueError for a step of another kind."""
    match step:
        case {"type": "Prepend", "prepend": "▁"}:
            return True
        case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
            return False
        case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme} if not step.get("split", True):
            if scheme != "never":
                _warn("a space is put in front of a text only where there is none, and not behind special tokens")
            return scheme != "never"
        case {"type": "Split", "pattern": {"String": " "}}:  # Gemma: no space is left after the normaliser
            return False
    raise ValueError(f"GGUF has no word for the step {json.dumps(step)} of a sentencepiece-like tokenizer.json")


def _compare(tokenizer: Tokenizer, segment: Segmenter, tokens: Sequence[str], types: np.ndarray) -> None:
    """Try every token's own text, and seeded mixtures of tokens, both ways."""
    plain = [token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL and "\n" not in token]
    rng = random.Random(0)
    mixtures = ["".join(rng.choices(plain, k=rng.randint(2, 6))) for _ in range(_PROBES)]
    for text in [*plain[:: max(1, len(plain) // _PROBES)], *mixtures]:
        whole = "▁" + text.lstrip("▁")
        expected = tokenizer.encode(whole[1:].replace("▁", " "), add_special=False, parse_special=False)
        if segment(whole, True) not in (expected, expected[1:]) and segment(whole[1:], True) != expected:
            raise ValueError(
                f"GGUF scores cannot say what these merges say: {text!r} would be cut into other tokens; "
                "export from the original sentencepiece model"
            )


def _unigram(
    tokenizer: Tokenizer, description: Mapping[str, Any], types: np.ndarray, around: list[int]
) -> dict[str, Any]:
    model = description["model"]
    scores = np.full(tokenizer.vocab_size, _UNREACHABLE_SCORE, np.float32)
    scores[: len(model["vocab"])] = [score for _, score in model["vocab"]]
    if (unk := model.get("unk_id")) is not None:
        types[unk] = UNKNOWN
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.remove_extra_whitespaces": False,
        **_shared(tokenizer, *_split_frame(tokenizer, around)),
    }
    if unk is not None:
        metadata["tokenizer.ggml.unknown_token_id"] = unk
    for step in _flatten(description.get("normalizer"), "normalizers"):
        match step:
            case {"type": "Precompiled", "precompiled_charsmap": charsmap}:
                data = np.frombuffer(base64.b64decode(charsmap), np.uint8)
                metadata["tokenizer.ggml.precompiled_charsmap"] = data
            case {"type": "Replace", "pattern": {"Regex": " {2,}"}} | {"type": "Strip"}:
                metadata["tokenizer.ggml.remove_extra_whitespaces"] = True
            case _:
                raise ValueError(f"GGUF has no word for the normaliser {json.dumps(step)}")
    steps = [
        step
        for step in _flatten(description.get("pre_tokenizer"), "pretokenizers")
        if step["type"] != "WhitespaceSplit"
    ]
    if [step["type"] for step in steps] != ["Metaspace"]:
        raise ValueError(f"GGUF has no word for the pre-tokenizer {json.dumps(description.get('pre_tokenizer'))}")
    metadata["tokenizer.ggml.add_space_prefix"] = steps[0].get("prepend_scheme", "always") != "never"
    return metadata


def _word_piece(
    tokenizer: Tokenizer, description: Mapping[str, Any], types: np.ndarray, around: list[int]
) -> dict[str, Any]:
    normalizer = description.get("normalizer") or {}
    if (
        normalizer.get("type") != "BertNormalizer"
        or (description.get("pre_tokenizer") or {}).get("type") != "BertPreTokenizer"
    ):
        raise ValueError("GGUF has a word only for WordPiece behind BertNormalizer and BertPreTokenizer")
    if len(around) != 2:
        raise ValueError(f"GGUF puts two ids around a WordPiece text, here are {around}")
    names = [_name(tokenizer, i) for i in range(tokenizer.vocab_size)]
    prefix = description["model"].get("continuing_subword_prefix", "##")
    lowercase = bool(normalizer.get("lowercase"))
    accents = normalizer.get("strip_accents")
    metadata = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [
            name if types[i] != NORMAL else name.removeprefix(prefix) if name.startswith(prefix) else "▁" + name
            for i, name in enumerate(names)
        ],
        "tokenizer.ggml.bos_token_id": around[0],
        "tokenizer.ggml.seperator_token_id": around[1],
        "tokenizer.ggml.unknown_token_id": tokenizer.token_to_id(description["model"]["unk_token"]),
        "tokenizer.ggml.normalizer.lowercase": lowercase,
        "tokenizer.ggml.normalizer.strip_accents": lowercase if accents is None else bool(accents),
    }
    if tokenizer.pad_id is not None:
        metadata["tokenizer.ggml.padding_token_id"] = tokenizer.pad_id
    return metadata
