"""Tokenizers from a sentencepiece model (tokenizer.model, spiece.model) with the settings that lie beside it.

Gives sentencepiece's ids for text, and reads special tokens the way the settings say. Knows which settings apply.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from os import PathLike
from pathlib import Path

from converters.files import atomic_write
from converters.tokenizer.base import Lexicon, Roles, Tokenizer
from converters.tokenizer.charsmap import SpaceNormalizer
from converters.tokenizer.export_gguf import sentencepiece_metadata
from converters.tokenizer.export_hf import save_settings
from converters.tokenizer.segmenters import Normalised
from converters.tokenizer.sentencepiece_model import (
    BPE,
    CONTROL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    parse_model,
)
from converters.tokenizer.settings import ROLES, AddedToken, Settings
from converters.tokenizer.spm import merge_segmenter, path_segmenter, spell
from converters.tokenizer.turns import end_ids
from converters.tokenizer.vocab_tokenizer import Frame, Origin, VocabTokenizer

_MOST_ADDED = 1 << 16


def from_sentencepiece(data: bytes, settings: Settings, where: str, file_name: str = "tokenizer.model") -> Tokenizer:
    """A tokenizer from the bytes of a sentencepiece model.

    Around a text goes what `add_bos_token` and `add_eos_token` say; where they are absent, a BPE model begins with its
    BOS and a unigram model ends with its EOS, as the models that are built on them do.

    Raises:
        ValueError: not a sentencepiece model, or the settings name tokens that do not fit to it.
    """
    model = parse_model(data, where)
    added = settings.added_tokens()
    tokens, types = _extended(model, added, where)
    ids = {token: i for i, token in enumerate(tokens)}
    names = _names(model, settings, ids)
    roles = _roles(names, settings, ids, types, added)
    unk = ids.get(names.get("unk_token", ""))
    size = len(model.pieces)
    if model.algorithm == BPE:
        segment = merge_segmenter(model.pieces, model.scores, types[:size], unk, freeze=True, fuse=True)
    else:
        segment = path_segmenter(model.pieces, model.scores, types[:size], unk, user_bonus=0.1)
    kept = [model.pieces[i] for i in range(size) if model.types[i] == USER_DEFINED]
    spec = model.normalizer
    lead = int((spec.add_dummy_prefix or spec.remove_extra_whitespaces) and not spec.whitespace_as_suffix)
    pieces = spell(tokens, types, (CONTROL, UNKNOWN))
    frame = _frame(model, settings, ids, types, added, roles)
    return VocabTokenizer(
        Lexicon(tokens, pieces, lead),
        roles,
        settings.templates,
        Normalised(SpaceNormalizer(spec, kept), segment),
        frame,
        Origin(
            partial(_save, data=data, settings=settings, added=added, file_name=file_name),
            partial(sentencepiece_metadata, model=model, types=types, frame=frame),
        ),
    )


def _extended(
    model: SentencePieceModel, added: Mapping[int, AddedToken], where: str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Tokens and types with the added ones; ids that nothing names become unused tokens."""
    tokens, types = list(model.pieces), list(model.types)
    last = max(added, default=-1)
    if last > len(tokens) + _MOST_ADDED:
        raise ValueError(f"{where}: an added token has the id {last}, but the model has only {len(tokens)} pieces")
    for i in range(len(tokens), last + 1):
        tokens.append(f"[UNUSED_{i}]")
        types.append(UNUSED)
    for i, token in added.items():
        if i < len(model.pieces) and tokens[i] != token.content:
            raise ValueError(f"{where}: id {i} is the piece {tokens[i]!r}, but the settings call it {token.content!r}")
        tokens[i] = token.content
        if types[i] != UNKNOWN:
            types[i] = CONTROL if token.special else USER_DEFINED
    return tuple(tokens), tuple(types)


def _names(model: SentencePieceModel, settings: Settings, ids: Mapping[str, int]) -> dict[str, str]:
    """Role → token: the settings', else the model's own. ValueError for a token that is not there."""
    own = {"unk_token": model.unk, "bos_token": model.bos, "eos_token": model.eos, "pad_token": model.pad}
    names = {role: model.pieces[i] for role, i in own.items() if 0 <= i < len(model.pieces)}
    for role in ROLES:
        if (text := settings.token(role)) is not None:
            if text not in ids:
                raise ValueError(f"tokenizer_config.json: {role} is {text!r}, which is not in the vocabulary")
            names[role] = text
    return names


def _roles(
    names: Mapping[str, str],
    settings: Settings,
    ids: Mapping[str, int],
    types: tuple[int, ...],
    added: Mapping[int, AddedToken],
) -> Roles:
    hidden = frozenset(i for i, kind in enumerate(types) if kind in (CONTROL, UNKNOWN))
    eos = [ids[names["eos_token"]]] if "eos_token" in names else []
    ends = settings.ids("eos_token_id") or end_ids(ids, hidden)
    return Roles(
        bos=ids.get(names.get("bos_token", "")),
        eos=tuple(dict.fromkeys([*eos, *ends])),
        pad=ids.get(names.get("pad_token", "")),
        unk=ids.get(names.get("unk_token", "")),
        hidden=hidden,
        names=names,
    )


def _frame(
    model: SentencePieceModel,
    settings: Settings,
    ids: Mapping[str, int],
    types: tuple[int, ...],
    added: Mapping[int, AddedToken],
    roles: Roles,
) -> Frame:
    config = settings.tokenizer
    bos = config.get("add_bos_token", model.algorithm == BPE)
    eos = config.get("add_eos_token", model.algorithm != BPE)
    return Frame(
        before=(roles.bos,) if bos and roles.bos is not None else (),
        after=roles.eos[:1] if eos else (),
        control={token: i for token, i in ids.items() if types[i] in (CONTROL, UNKNOWN)},
        always={token.content: i for i, token in added.items() if types[i] == USER_DEFINED},
        trim_left=frozenset(i for i, token in added.items() if token.lstrip),
        trim_right=frozenset(i for i, token in added.items() if token.rstrip),
        restart=bool(config.get("legacy", True)),
    )


def _save(
    directory: str | PathLike[str],
    tokenizer: Tokenizer,
    *,
    data: bytes,
    settings: Settings,
    added: Mapping[int, AddedToken],
    file_name: str,
) -> list[str]:
    with atomic_write(Path(directory) / file_name, len(data)) as file:
        file.write(data)
    config = {**settings.special, **settings.tokenizer}
    config["added_tokens_decoder"] = {str(i): asdict(token) for i, token in added.items()}
    return [file_name, *save_settings(directory, config, tokenizer.chat_templates)]
