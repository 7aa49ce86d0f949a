"""Streaming: the text so far is always a prefix of the text at the end, and a stop string never leaks."""

import random

import numpy as np
import pytest

from converters.tokenizer import StopStrings, StreamDecoder, Tokenizer, from_gguf
from converters.tokenizer.bpe import BYTE_TO_CHAR

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    tokens = [*BYTE_TO_CHAR.values(), "ĠðŁ", "ĺĢ", "<|im_end|>"]
    types = [1] * 258 + [3]
    return from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": np.array(types, np.int32),
            "tokenizer.ggml.merges": [],
        }
    )


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, "▁", "a", "▁a", "▁▁", "é", "日"]
    return from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": np.zeros(len(tokens), np.float32),
            "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * 6, np.int32),
        }
    )


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("skip_special", [True, False])
def test_every_prefix_is_a_prefix_of_the_whole(name: str, skip_special: bool, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    rng = random.Random(11)
    valid = "a é日😀\u0301 ".encode()
    for _ in range(300):
        if rng.random() < 0.5:  # any ids: mostly bytes that are not UTF-8
            ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randint(0, 12))]
        else:
            names = (
                [f"<0x{byte:02X}>" for byte in valid] if name == "sentencepiece" else [BYTE_TO_CHAR[b] for b in valid]
            )
            ids = [tokenizer.token_to_id(token) or 0 for token in names][: rng.randint(0, len(valid))]
            ids += [rng.randrange(tokenizer.vocab_size - 5, tokenizer.vocab_size) for _ in range(rng.randint(0, 3))]
        whole = tokenizer.decode(ids, skip_special=skip_special)
        stream = StreamDecoder(tokenizer, skip_special=skip_special)
        text = ""
        for i, token in enumerate(ids):
            text += stream.push(token)
            assert whole.startswith(text)
            if i + 1 < len(ids):
                assert tokenizer.decode(ids[: i + 1], skip_special=skip_special).startswith(text)
        assert text + stream.flush() == whole


def test_a_character_comes_with_its_last_byte(byte_level: Tokenizer) -> None:
    stream = StreamDecoder(byte_level)
    ids = [byte_level.token_to_id(token) for token in ("ĠðŁ", "ĺĢ", "a")]
    assert [stream.push(i) for i in ids] == [" ", "😀", "a"]
    assert stream.flush() == ""


def test_a_replacement_character_comes_only_when_it_is_certain(byte_level: Tokenizer) -> None:
    stream = StreamDecoder(byte_level)
    first, rest, letter = (byte_level.token_to_id(BYTE_TO_CHAR[byte]) for byte in (0xE6, 0x97, 0x61))
    assert stream.push(first) == ""
    assert stream.push(rest) == ""
    assert stream.push(letter) == "\ufffda"
    assert stream.push(first) == ""
    assert stream.flush() == "\ufffd"


def test_the_dummy_prefix_is_dropped_at_the_front_only(sentencepiece: Tokenizer) -> None:
    word = sentencepiece.token_to_id("▁a")
    stream = StreamDecoder(sentencepiece)
    assert [stream.push(i) for i in (1, word, word)] == ["", "a", " a"]
    continued = StreamDecoder(sentencepiece, context=[1, word])
    assert continued.push(word) == " a"


def test_unknown_ids_are_an_error(byte_level: Tokenizer) -> None:
    with pytest.raises(ValueError, match="token id 999"):
        StreamDecoder(byte_level).push(999)


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: the stop that is complete first, of those complete together the longest."""
    ends = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end - len(stop)], stop


def test_stop_strings_equal_their_definition_however_the_text_is_cut() -> None:
    rng = random.Random(5)
    for _ in range(2000):
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 5))) + rng.choice("abc") for _ in range(rng.randint(0, 4))]
        text = "".join(rng.choices("abc", weights=[5, 5, 1], k=rng.randint(0, 30)))
        expected, stop = first_stop(text, stops)
        watch = StopStrings(stops)
        shown, at = "", 0
        while at < len(text):
            size = rng.randint(0, 5)
            emit, stopped = watch.push(text[at : at + size])
            shown += emit
            at += size
            assert expected.startswith(shown)
            assert stopped == (stop is not None and stop in text[:at] and watch.matched is not None)
            unsure = text[len(shown) : at]
            if not stopped:  # everything held back may still become a stop
                assert not unsure or any(other.startswith(unsure) and other != unsure for other in stops)
        assert shown + watch.flush() == expected
        assert watch.matched == stop


def test_stop_strings_across_tokens() -> None:
    watch = StopStrings(["</answer>", "\n\n"])
    assert watch.push("yes</ans") == ("yes", False)
    assert watch.push("wers> no") == ("</answers> no", False)
    assert watch.push("\n") == ("", False)
    assert watch.push("</answer>x") == ("\n", True)
    assert watch.push("more") == ("", True)
    assert watch.flush() == ""
    assert watch.matched == "</answer>"


def test_no_stop_strings_and_empty_ones() -> None:
    watch = StopStrings([])
    assert watch.push("abc") == ("abc", False)
    with pytest.raises(ValueError, match="empty stop string"):
        StopStrings(["a", ""])
