"""tokenizer.json and the older files, against transformers on tokenizers that are trained here."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from converters.tokenizer import StreamDecoder, from_directory
from converters.tokenizer.spelling import Spelling

CORPUS = [
    "The quick brown fox jumps over the lazy dog; the dog sleeps, and the fox runs on through the thicket.",
    "Tokenizers cut words into pieces: token, tokens, tokenize, tokenizing, 1234567 and 3.14159.",
    "Übermäßig große Wörter, naïve façades, 日本語 and emoji 🙂🙃 are part of every text on earth.",
] * 4
SPECIAL = ["<s>", "</s>", "<|im_end|>"]
PARTS = [*"abcdefghij eht  ionrs0123éß①ﬁ日🙂\u0301\n\t\u00a0'", "▁", "the ", "ing ", *SPECIAL, "<0x41>", "<sep>", "'s"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def texts(count: int = 120) -> list[str]:
    rng = random.Random(1)
    return ["", " ", *CORPUS[:3], *("".join(rng.choices(PARTS, k=rng.randint(1, 30))) for _ in range(count))]


def byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def llama_like() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", *SPECIAL, *BYTES], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def unigram() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", *SPECIAL]
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_piece() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


BERT_ROLES = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
SEP_TOKEN = {"content": "<sep>", "special": False, "lstrip": True, "rstrip": False, "normalized": True}
CASES = {
    "byte_level": (byte_level, {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|im_end|>"}),
    "byte_level_added": (
        byte_level,
        {"eos_token": {"content": "</s>", "__type": "AddedToken"}, "added_tokens_decoder": {"400": SEP_TOKEN}},
    ),
    "llama_like": (llama_like, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "unigram": (unigram, {"eos_token": "</s>", "unk_token": "<unk>"}),
    "word_piece": (word_piece, BERT_ROLES),
}


def write(directory: Path, tokenizer: tokenizers.Tokenizer, config: dict[str, Any]) -> Path:
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    build, config = CASES[name]
    directory = write(tmp_path, build(), config)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(directory), from_directory(directory)
    assert ours.vocab_size == len(theirs)
    assert (ours.bos_id, ours.pad_id) == (theirs.bos_token_id, theirs.pad_token_id)
    assert ours.eos_ids[:1] == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    for text in texts():
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special=special) == ids, text
        plain = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text, add_special=False, parse_special=False) == plain, text
        for skip in (True, False):
            decoded = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special=skip) == decoded
            stream = StreamDecoder(ours, skip_special=skip)
            assert "".join(stream.push(i) for i in ids) + stream.flush() == decoded


@pytest.mark.parametrize("name", ["byte_level", "llama_like"])
def test_round_trip(name: str, tmp_path: Path) -> None:
    tokenizer = from_directory(write(tmp_path, CASES[name][0](), CASES[name][1]))
    for text in texts():
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        if name == "byte_level" or "<0x41>" not in text and "▁" not in text:
            assert tokenizer.decode(ids, skip_special=False) == text


def test_saved_and_loaded_again_it_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": [{"name": "tool_use", "template": "T"}]}
    first = from_directory(write(tmp_path / "a", llama_like(), config))
    names = first.save(tmp_path / "b")
    assert names == ["tokenizer.json", "tokenizer_config.json", "additional_chat_templates/tool_use.jinja"]
    second = from_directory(tmp_path / "b")
    assert [second.encode(text) for text in texts()] == [first.encode(text) for text in texts()]
    assert (second.eos_ids, second.bos_id, second.special_ids) == (first.eos_ids, first.bos_id, first.special_ids)
    assert second.chat_templates == {"tool_use": "T"}


def test_settings_beside_the_vocabulary(tmp_path: Path) -> None:
    write(tmp_path, byte_level(), {"eos_token": "</s>", "chat_template": "old"})
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 1], "bos_token_id": 0}')
    (tmp_path / "chat_template.jinja").write_text("new")
    tokenizer = from_directory(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, (1, 2))
    assert tokenizer.chat_template == "new"
    (tmp_path / "generation_config.json").unlink()
    assert from_directory(tmp_path).eos_ids == (1, 2)  # <|im_end|> is known by its text


def test_a_role_that_no_vocabulary_has_stays_empty(tmp_path: Path) -> None:
    tokenizer = from_directory(write(tmp_path, byte_level(), {"eos_token": "</s>", "pad_token": "[PAD]"}))
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (None, 400)


def test_what_the_config_puts_around_a_text(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True}
    tokenizer = from_directory(write(tmp_path, byte_level(), config))
    a = tokenizer.token_to_id("a")
    assert tokenizer.encode("a") == [0, a, 1]
    assert tokenizer.encode("a", add_special=False) == [a]


def test_gpt2_and_bert_files(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for name, build in (("gpt2", byte_level), ("bert", word_piece)):
        directory = tmp_path / name
        directory.mkdir()
        trained = build()
        trained.model.save(str(directory))
        if name == "gpt2":
            (directory / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
            theirs = transformers.GPT2Tokenizer(
                vocab=str(directory / "vocab.json"), merges=str(directory / "merges.txt"), eos_token="</s>"
            )
        else:
            theirs = transformers.BertTokenizer(vocab=str(directory / "vocab.txt"))
        ours = from_directory(directory)
        for text in texts(60):
            text = text.replace("<s>", "").replace("<|im_end|>", "")  # GPT-2's files do not name them
            assert ours.encode(text) == theirs.encode(text), (name, text)


def test_a_byte_that_no_token_covers_is_an_error(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ours = from_directory(write(tmp_path, tokenizer, {}))
    assert ours.encode("abba") == [2, 1, 0]
    with pytest.raises(ValueError, match="cannot express 'c'"):
        ours.encode("abc")
    with pytest.raises(ValueError, match="lone surrogate"):
        ours.encode("\udcff")


def test_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="tokenizer.json, tokenizer.model.*vocab.json with merges.txt, vocab.txt"
    ):
        from_directory(tmp_path)
    with pytest.raises(FileNotFoundError, match="not a directory"):
        from_directory(tmp_path / "nowhere")


def break_json(change: Callable[[dict[str, Any]], object]) -> str:
    description = json.loads(byte_level().to_str())
    change(description)
    return json.dumps(description)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", "{", "not a tokenizer.json"),
        ("tokenizer.json", "[]", "not a tokenizer.json"),
        ("tokenizer.json", break_json(lambda d: d["model"]["merges"].append("zzz")), "not a tokenizer.json"),
        ("tokenizer.json", break_json(lambda d: d["model"]["vocab"].update(x=2**31)), "largest id"),
        ("tokenizer.json", break_json(lambda d: d.update(decoder={"type": "CTC"})), "(?s)CTC|not a tokenizer.json"),
        ("tokenizer_config.json", "[]", "expected a JSON object"),
        ("tokenizer_config.json", '{"bos_token": 3}', "bos_token is 3"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "added_tokens_decoder"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder has 'x'"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"999": {"content": "q"}}}', "has the id 999"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id is 'x'"),
    ],
)
def test_damaged_files_are_refused(file: str, content: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, byte_level(), {})
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        from_directory(tmp_path)


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.ByteLevel(),
        decoders.Metaspace(),
        decoders.Metaspace(prepend_scheme="never"),
        decoders.WordPiece(),
        decoders.WordPiece(cleanup=False),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    ],
    ids=str,
)
def test_spelling_equals_the_decoders_of_the_package(decoder: decoders.Decoder) -> None:
    spelling = Spelling(json.loads(decoder.__getstate__()))
    rng = random.Random(2)
    tokens = ["▁the", "ing", "##s", ",", "▁", "é", "Ġfox", "Ã©", ".", "'s", "<0x41>", "n't", "ab▁c"]
    for _ in range(200):
        some = ["▁x", *rng.choices(tokens, k=rng.randint(0, 8))]
        data = b"".join(map(spelling, some))
        for _ in range(spelling.lead):
            data = data.removeprefix(b" ")
        assert data.decode("utf-8", "replace") == decoder.decode(some)


def test_decoders_that_cannot_be_streamed_are_refused() -> None:
    for step in ({"type": "BPEDecoder", "suffix": "</w>"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}):
        with pytest.raises(ValueError, match="known: ByteLevel"):
            Spelling(step)
