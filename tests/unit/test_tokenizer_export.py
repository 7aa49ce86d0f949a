"""Tokenizers written out: GGUF to directory to GGUF, with the same ids at every station."""

import random
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from test_tokenizer_gguf import bpe_metadata, spm_metadata
from test_tokenizer_hf import CASES, SPECIAL, byte_level, texts, write
from tokenizers import models, normalizers, pre_tokenizers

from converters.gguf import open_gguf
from converters.tokenizer import Tokenizer, from_directory, from_gguf
from converters.tokenizer.pretokenizers import PRE_TOKENIZERS

TEXTS = ["", " ", "Hello  world\n\n x", "it's 12345 日本 🙂", "<|im_start|>user\nhi<|im_end|> x", "a</s>b  c"]


def same(first: Tokenizer, second: Tokenizer, some: list[str]) -> None:
    for text in some:
        for special in (True, False):
            assert second.encode(text, add_special=special) == first.encode(text, add_special=special), text
        plain = first.encode(text, parse_special=False)
        assert second.encode(text, parse_special=False) == plain, text
        assert second.decode(plain) == first.decode(plain)


@pytest.mark.filterwarnings("ignore:GGUF cannot say that .* added tokens swallow")  # phi-3
@pytest.mark.parametrize("name", ["deepseek-coder", "llama-spm", "phi-3"])
def test_gguf_to_directory_and_back(name: str, shared: Path, tmp_path: Path) -> None:
    with closing(open_gguf(shared / "tokenizers" / f"ggml-vocab-{name}.gguf")) as source:
        metadata = dict(source.metadata)
    first = from_gguf(metadata)
    unchanged = first.to_gguf_metadata()
    assert unchanged.keys() == {key for key in metadata if key.startswith("tokenizer.")}
    assert all(np.array_equal(unchanged[key], metadata[key]) for key in unchanged)
    some = TEXTS + (shared / "tokenizers" / "ggml-vocab-gpt-2.gguf.inp").read_text().split("\n__ggml_vocab_test__\n")
    first.save(tmp_path)
    second = from_directory(tmp_path)
    same(first, second, some)
    assert (second.bos_id, second.eos_ids, second.pad_id) == (first.bos_id, first.eos_ids, first.pad_id)
    assert (second.special_ids, second.chat_templates) == (first.special_ids, first.chat_templates)
    third = from_gguf({"general.name": metadata.get("general.name", ""), **second.to_gguf_metadata()})
    same(second, third, some)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [theirs.encode(text) for text in some] == [first.encode(text) for text in some]


@pytest.mark.parametrize("name", ["byte_level", "unigram", "word_piece"])
def test_tokenizer_json_to_gguf(name: str, tmp_path: Path) -> None:
    build, config = CASES[name]
    trained = build()
    if name == "unigram":  # GGUF knows no NFKC
        trained.normalizer = normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
    first = from_directory(write(tmp_path, trained, config))
    second = from_gguf(first.to_gguf_metadata())
    assert second.vocab_size == first.vocab_size
    assert second.eos_ids[:1] == first.eos_ids[:1]
    some = texts(60)
    if name == "unigram":  # GGUF trims each text between special tokens, and takes a literal "▁" for a space
        some = [text.strip(" ") for text in some if not any(part in text for part in ("  ", "▁", *SPECIAL))]
    for text in some:
        assert second.encode(text) == first.encode(text), text


def test_merges_become_scores_only_if_that_gives_the_same_ids(tmp_path: Path) -> None:
    tokens = ["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "a", "b", "c", "ab", "bc", "abc", "▁a"]
    vocab = {token: i for i, token in enumerate(tokens)}

    def build(merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
        model = models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = tokenizers.decoders.Replace("▁", " ")
        return tokenizer

    closed = [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c"), ("▁", "a")]
    first = from_directory(write(tmp_path, build(closed), {"unk_token": "<unk>"}))
    second = from_gguf(first.to_gguf_metadata())
    assert [second.encode(text) for text in ("abc", "a b", "cab é")] == [
        first.encode(text) for text in ("abc", "a b", "cab é")
    ]
    open_ended = from_directory(write(tmp_path, build([("b", "c"), ("a", "b"), ("ab", "c")]), {"unk_token": "<unk>"}))
    with pytest.raises(ValueError, match="GGUF scores cannot say what these merges say"):
        open_ended.to_gguf_metadata()


def test_pre_tokenizers_are_found_by_their_patterns(tmp_path: Path) -> None:
    for name in ("gpt-2", "llama-bpe", "qwen2", "starcoder", "deepseek-v3", "tekken", "gpt-4o", "falcon"):
        rules = PRE_TOKENIZERS[name]
        trained = byte_level()
        trained.model.ignore_merges = rules.ignore_merges
        splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in rules.patterns]
        byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        trained.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte])
        trained.normalizer = normalizers.NFC()
        tokenizer = from_directory(write(tmp_path, trained, {}))
        assert tokenizer.to_gguf_metadata()["tokenizer.ggml.pre"] == name


def test_what_gguf_cannot_say_is_refused(tmp_path: Path) -> None:
    trained = byte_level()
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ValueError, match="no word for the pre-tokenizer"):
        from_directory(write(tmp_path, trained, {})).to_gguf_metadata()
    trained = byte_level()
    trained.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match="no word for the normaliser"):
        from_directory(write(tmp_path, trained, {})).to_gguf_metadata()


def test_template_names_stay_inside_the_directory(tmp_path: Path) -> None:
    tokenizer = from_gguf(bpe_metadata(**{"tokenizer.chat_template.../../evil": "x"}))
    with pytest.raises(ValueError, match="no plain file name"):
        tokenizer.save(tmp_path)


def test_spm_scores_become_merges(tmp_path: Path) -> None:
    rng = random.Random(9)
    words = sorted({"".join(rng.choices("abc▁", k=rng.randint(2, 4))) for _ in range(60)} | set("abc▁"))
    scores = {word: -float(i) for i, word in enumerate(rng.sample(words, len(words)))}
    first = from_gguf(spm_metadata(scores))
    first.save(tmp_path)
    some = ["".join(rng.choices("abc ", k=rng.randint(1, 30))) for _ in range(100)]
    equal = sum(from_directory(tmp_path).encode(text) == first.encode(text) for text in some)
    assert equal > 90  # random words: where one token can be made of overlapping pairs, merges go by rank, not by place
