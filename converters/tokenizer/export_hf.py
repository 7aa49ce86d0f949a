"""Tokenizers written as the files of a Hugging Face directory: tokenizer.json, tokenizer_config.json, chat templates.

Knows those files, and how a vocabulary with scores becomes merges; where the vocabulary comes from it does not.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from converters.files import atomic_write
from converters.tokenizer.base import Roles
from converters.tokenizer.sentencepiece_model import NormalizerSpec
from converters.tokenizer.vocab_tokenizer import Frame

_SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


def save_json_tokenizer(
    directory: str | PathLike[str],
    description: Mapping[str, Any],
    config: Mapping[str, Any],
    templates: Mapping[str, str],
) -> list[str]:
    """Write tokenizer.json and what goes with it; returns the names of the files."""
    _write(Path(directory) / "tokenizer.json", json.dumps(description, ensure_ascii=False, indent=1))
    return ["tokenizer.json", *save_settings(directory, config, templates)]


def save_settings(directory: str | PathLike[str], config: Mapping[str, Any], templates: Mapping[str, str]) -> list[str]:
    """Write tokenizer_config.json and a file for each chat template; returns their names.

    Raises:
        ValueError: a template's name is no file name.
    """
    for name in templates:
        if not _SAFE_NAME.fullmatch(name):
            raise ValueError(f"the chat template {name!r} cannot be saved: its name is no plain file name")
    kept = {key: value for key, value in config.items() if key != "chat_template"}
    _write(Path(directory) / "tokenizer_config.json", json.dumps(kept, ensure_ascii=False, indent=2, sort_keys=True))
    names = ["tokenizer_config.json"]
    for name, source in templates.items():
        file = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
        (Path(directory) / file).parent.mkdir(exist_ok=True)
        _write(Path(directory) / file, source)
        names.append(file)
    return names


def _write(file: Path, text: str) -> None:
    data = text.encode("utf-8")
    with atomic_write(file, len(data)) as out:
        out.write(data)


def describe_vocab(backend: tokenizers.Tokenizer, frame: Frame, tokens: Sequence[str | None]) -> dict[str, Any]:
    """The tokenizer.json of a backend that segments plain text, with special tokens and what goes around a text.

    Raises:
        ValueError: a special token would get another id.
    """
    special = {**(frame.always or {}), **(frame.control or {})}
    for text, i in sorted(special.items(), key=lambda entry: entry[1]):
        token = AddedToken(
            text,
            normalized=False,
            special=text in (frame.control or {}),
            lstrip=i in frame.trim_left,
            rstrip=i in frame.trim_right,
        )
        backend.add_tokens([token])
        if backend.token_to_id(text) != i:
            raise ValueError(f"tokenizer.json cannot give the token {text!r} the id {i}")
    description = json.loads(backend.to_str())
    if frame.before or frame.after:
        description["post_processor"] = _template(
            [str(tokens[i]) for i in frame.before], [str(tokens[i]) for i in frame.after], [*frame.before, *frame.after]
        )
    return description


def _template(before: list[str], after: list[str], ids: Iterable[int]) -> dict[str, Any]:
    def special(texts: list[str], kind: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": text, "type_id": kind}} for text in texts]

    single = [*special(before, 0), {"Sequence": {"id": "A", "type_id": 0}}, *special(after, 0)]
    second = [*special(before, 1), {"Sequence": {"id": "B", "type_id": 1}}, *special(after, 1)]
    named = zip([*before, *after], ids, strict=True)
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single + second,
        "special_tokens": {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in named},
    }


def config_of(roles: Roles) -> dict[str, Any]:
    """A tokenizer_config.json that names the special tokens."""
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **roles.names}


def spm_bpe_backend(
    ids: Mapping[str, int], scores: Mapping[str, float], unk: str | None, *, space_prefix: bool
) -> tokenizers.Tokenizer:
    """Sentencepiece BPE as transformers converts it: every way to put a token together is a merge, best score first.

    Ties between equal scores go by length instead of by place, the one thing that merges cannot say.
    """
    merges: list[tuple[float, str, str]] = []
    for token, score in scores.items():
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        merges += [(score, left, right) for left, right in cuts if left in scores and right in scores]
    merges.sort(key=lambda merge: (-merge[0], -len(merge[1]), -len(merge[2]), ids[merge[1]], ids[merge[2]]))
    pairs = [(left, right) for _, left, right in merges]
    model = models.BPE(vocab=dict(ids), merges=pairs, unk_token=unk, fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    prepend = [normalizers.Prepend("▁")] if space_prefix else []
    backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if space_prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def unigram_backend(
    tokens: Sequence[str], scores: Sequence[float], unk: int | None, spec: NormalizerSpec, *, byte_fallback: bool
) -> tokenizers.Tokenizer:
    """Sentencepiece unigram as transformers converts it."""
    vocab = list(zip(tokens, map(float, scores), strict=True))
    backend = tokenizers.Tokenizer(models.Unigram(vocab, unk, byte_fallback))
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(spec.charsmap)] if spec.charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    scheme = "always" if spec.add_dummy_prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme)
    backend.decoder = decoders.Metaspace("▁", scheme)
    return backend
