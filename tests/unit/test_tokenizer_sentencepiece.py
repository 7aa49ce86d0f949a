"""tokenizer.model files, against the sentencepiece package on models that it trains here."""

import io
import json
import random
import tracemalloc
from pathlib import Path

import pytest

from converters.tokenizer import Tokenizer, from_directory, from_gguf
from converters.tokenizer.charsmap import CharsMap
from converters.tokenizer.sentencepiece_model import BPE, UNIGRAM, parse_model
from converters.tokenizer.sentencepiece_tokenizer import from_sentencepiece
from converters.tokenizer.settings import Settings

CORPUS = [
    "The quick brown fox jumps over the lazy dog; the dog sleeps, and the fox runs on through the thicket.",
    "Tokenizers cut words into pieces: token, tokens, tokenize, tokenizing, 1234567 and 3.14159.",
    "Über große Wörter, naïve façades, and emoji are part of every text that people write on earth.",
]
PARTS = [
    *"abcdefghij eht  ionrs0123",
    *"éß①ﬁＡ日本🙂\u0301\n\t\u00a0\u200bŁ",
    *["<sep>", "▁", "the ", "ing ", "<ctl>", "ab c", "  ", "<0x41>", "<s>"],
]
PLAIN = {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "normalization_rule_name": "identity"}
OPTIONS = [{}, PLAIN, {"treat_whitespace_as_suffix": True}, {"normalization_rule_name": "nfkc_cf"}]


def train(kind: str, byte_fallback: bool = True, **options: object) -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_writer=model,
        vocab_size=(400 if byte_fallback else 130) if kind == "bpe" else (340 if byte_fallback else 84),
        model_type=kind,
        byte_fallback=byte_fallback,
        user_defined_symbols=["<sep>", "ab▁c"],
        control_symbols=["<ctl>"],
        minloglevel=2,
        hard_vocab_limit=False,
        num_threads=1,
        **options,
    )
    return model.getvalue()


def texts(count: int = 200) -> list[str]:
    rng = random.Random(0)
    return ["", " ", "  ", *CORPUS, *("".join(rng.choices(PARTS, k=rng.randint(1, 40))) for _ in range(count))]


def load(model: bytes, **config: object) -> Tokenizer:
    return from_sentencepiece(model, Settings(tokenizer=config), "test.model")


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "plain", "suffix", "case_folded"])
@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_equals_sentencepiece(kind: str, byte_fallback: bool, options: dict[str, object]) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = train(kind, byte_fallback, **options)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = load(model)
    assert ours.vocab_size == theirs.get_piece_size()
    assert (ours.bos_id, ours.eos_ids, ours.unk_id, ours.pad_id) == (1, (2,), 0, None)
    for text in texts():
        ids = ours.encode(text, add_special=False, parse_special=False)
        assert ids == theirs.encode(text), text
        # a literal "▁" may leave several spaces in front, of which sentencepiece takes off all
        if byte_fallback and not ours.id_to_token(ids[0] if ids else 3).startswith("▁▁") and "▁" not in text:
            assert ours.decode(ids) == theirs.decode(ids), text


def test_what_goes_around_a_text() -> None:
    bpe, unigram = train("bpe"), train("unigram")
    assert load(bpe).encode("") == [1]
    assert load(unigram).encode("") == [2]
    assert load(bpe, add_bos_token=False, add_eos_token=True).encode("") == [2]


def test_special_tokens_and_the_space_behind_them() -> None:
    model = train("bpe")
    legacy, new = load(model), load(model, legacy=False)
    ids = legacy.encode("the</s>the", add_special=False)
    assert ids[ids.index(2) + 1 :] == legacy.encode("the", add_special=False)
    ids = new.encode("the</s>the", add_special=False)
    assert new.decode(ids, skip_special=False) == "the</s>the"
    assert 2 not in legacy.encode("</s>", add_special=False, parse_special=False)
    assert legacy.special_ids == {0, 1, 2, legacy.token_to_id("<ctl>")}


def test_added_tokens_extend_the_vocabulary(tmp_path: Path) -> None:
    model = train("bpe")
    size = load(model).vocab_size
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size + 1}))
    config = {"eos_token": "<|im_end|>", "added_tokens_decoder": {str(size): {"content": "<tool>", "rstrip": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = from_directory(tmp_path)
    assert tokenizer.eos_ids == (size + 1, 2)
    assert tokenizer.encode("<tool>  <|im_end|>", add_special=False) == [size, size + 1]
    (tmp_path / "saved").mkdir()
    assert tokenizer.save(tmp_path / "saved") == ["tokenizer.model", "tokenizer_config.json"]
    again = from_directory(tmp_path / "saved")
    for text in [*texts(20), "<tool>  <|im_end|>"]:
        assert again.encode(text) == tokenizer.encode(text)
    assert (again.eos_ids, again.special_ids) == (tokenizer.eos_ids, tokenizer.special_ids)


def test_settings_that_do_not_fit_are_refused() -> None:
    model = train("bpe")
    with pytest.raises(ValueError, match="bos_token is '<no>', which is not in the vocabulary"):
        load(model, bos_token="<no>")
    with pytest.raises(ValueError, match="id 1 is the piece '<s>', but the settings call it 'x'"):
        load(model, added_tokens_decoder={"1": {"content": "x"}})
    with pytest.raises(ValueError, match="an added token has the id 99999999"):
        load(model, added_tokens_decoder={"99999999": {"content": "x"}})


def test_the_reader_sees_what_the_trainer_was_told() -> None:
    model = parse_model(train("unigram", False, pad_id=3, **PLAIN), "x")
    assert (model.algorithm, model.byte_fallback, model.pad, model.unk) == (UNIGRAM, False, 3, 0)
    assert not model.normalizer.add_dummy_prefix
    assert not model.normalizer.charsmap
    assert parse_model(train("bpe"), "x").algorithm == BPE


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no pieces"),
        (b"\x0a", "the message ends within a number"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "a field of 9223372036854775807 bytes, but only 0 are left"),
        (b"\x0a" + b"\xff" * 11, "more than 10 bytes"),
        (b"\x0a\x02\x0a\x00", "piece 0 has no text"),
        (b"\x0a\x03\x0a\x01a\x0a\x03\x0a\x01a", "'a' occurs twice"),
        (b"\x0a\x03\x0a\x01\xff", "utf-8"),
        (b"\x0a\x08\x0a\x01a\x15\x00\x00\xc0\x7f", "NaN"),
        (b"\x0a\x03\x0a\x01a\x12\x02\x18\x03", "model_type 3 is not known"),
        (b"\x0b\x0a\x03\x0a\x01a", "wire type 3"),
        (b"\x08\x01\x0a\x03", "field 1 is a number"),
        (b"\x0a\x03\x0a\x01a\x22\x05", "a field of 5 bytes, but only 0 are left"),
    ],
)
def test_damaged_models_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_model(data, "file")


def test_mutations_of_a_model_never_crash_or_flood() -> None:
    model = train("bpe", False, **PLAIN)
    rng = random.Random(4)
    tracemalloc.start()
    for _ in range(300):
        data = bytearray(model)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            load(bytes(data[: rng.randint(len(data) // 2, len(data))])).encode("the dog runs")
        except ValueError:
            continue
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(model) + 64 * 2**20


@pytest.mark.parametrize("blob", [b"", b"\0\0\0\0", b"\x08\0\0\0abcd", b"\x03\0\0\0abc"])
def test_a_charsmap_shorter_than_it_says_is_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match="precompiled charsmap"):
        CharsMap(blob)


def test_a_charsmap_that_points_outside_is_refused() -> None:
    far = (0x1FFFFF << 10).to_bytes(4, "little")
    with pytest.raises(ValueError, match="node .* of a trie of 1"):
        CharsMap(b"\x04\0\0\0" + far)("a")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_model_becomes_gguf_metadata(kind: str) -> None:
    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False} if kind == "bpe" else {}
    first = load(train(kind, **options))
    second = from_gguf(first.to_gguf_metadata())
    for text in texts(60):
        if "ab" not in text:  # GGUF matches user-defined pieces before spaces become "▁"
            text = text.replace("▁", "").replace("<sep>", "").strip(" ")
            assert second.encode(text, parse_special=False) == first.encode(text, parse_special=False)
    assert (second.bos_id, second.eos_ids) == (first.bos_id, first.eos_ids)
    if kind == "bpe":
        with pytest.raises(ValueError, match="BPE model normalises its text"):
            load(train("bpe")).to_gguf_metadata()
