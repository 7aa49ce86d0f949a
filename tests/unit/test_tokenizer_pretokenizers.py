"""The table of pre-tokenizers: every name cuts text as its regexes say (a second regex engine is the judge)."""

import random
from itertools import pairwise

import pytest
from tokenizers import Regex, pre_tokenizers

from converters.tokenizer.pretokenizers import PRE_TOKENIZERS

# The names in llama.cpp's src/llama-vocab.cpp.
NAMES = """a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx
deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 f2llmv2 falcon falcon-h1
falcon3 gemma4 gigachat glm4 gpt-2 gpt-4o gpt3-finnish granite-docling granite-embed-multi-311m granite-embed-multi-97m
grok-2 hunyuan hunyuan-dense hy_v4 jais jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es
jina-v5-nano joyai-llm kanana2 kimi-k2 kormo laguna lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum
mellum2 midm-2.0 minerva-7b minicpm5 minimax-m2 modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35 refact
roberta-bpe sarvam-moe seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder superbpe talkie tekken
tiny_aya trillion ufakzeka viking whitespace youtu""".split()

SAMPLE = (
    "I'VE we'll don't 'sfoo  x\n\n \t y 1234567 3.14 ½Ⅷ a_b=$c+=<d>! HelloWorld helloÉcole ÉTÉ "
    "日本語テキスト한국어 ไทย e\u0301\u0302x …！"
)


def split(name: str, text: str) -> list[str]:
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[name].patterns]
    return [piece for piece, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(text)]


def test_every_name_of_llama_cpp_is_there() -> None:
    assert sorted(PRE_TOKENIZERS) == sorted(NAMES)


@pytest.mark.parametrize("patterns", sorted({rules.patterns for rules in PRE_TOKENIZERS.values()}))
def test_pieces_equal_those_of_another_regex_engine(patterns: tuple[str, ...]) -> None:
    regex = pytest.importorskip("regex", reason="the regex package comes with transformers")
    compiled = [regex.compile(pattern.replace(r"\s+$", r"\s+\Z"), regex.V1) for pattern in patterns]
    rng = random.Random(0)
    # the engines do not agree on whether \b stands beside a fraction or a Roman numeral
    sample = SAMPLE.replace("½Ⅷ", "") if any(r"\b" in pattern for pattern in patterns) else SAMPLE
    texts = [sample] + ["".join(rng.choices(sample + " \n", k=rng.randint(1, 60))) for _ in range(60)]
    name = next(name for name, rules in PRE_TOKENIZERS.items() if rules.patterns == patterns)
    for text in texts:
        pieces = [text]
        for pattern in compiled:
            cut = []
            for piece in pieces:
                borders = {border for match in pattern.finditer(piece) for border in match.span()}
                cut += [piece[a:b] for a, b in pairwise(sorted(borders | {0, len(piece)}))]
            pieces = cut
        assert split(name, text) == pieces


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("gpt-2", "I'LL go  on 12345", ["I", "'", "LL", " go", " ", " on", " 12345"]),
        ("llama-bpe", "I'LL go  on 12345", ["I", "'LL", " go", " ", " on", " ", "123", "45"]),
        ("qwen2", "a 12\n\n b", ["a", " ", "1", "2", "\n\n", " b"]),
        ("smollm", "x1 22", ["x", "1", " ", "2", "2"]),
        ("default", "a==1234", ["a", "==", "123", "4"]),
        ("falcon", "a`b 1234", ["a", "`", "b", " ", "123", "4"]),
        ("deepseek-v3", "ab日本12345!x", ["ab", "日本", "123", "45", "!x"]),
        ("tekken", "helloWorld 12", ["hello", "World", " ", "1", "2"]),
        ("gpt-4o", "HTTPServer's 1234", ["HTTPServer's", " ", "123", "4"]),
        ("afmoe", "1234567", ["1", "234", "567"]),
        ("tiny_aya", "12345", ["12", "345"]),
        ("superbpe", "by 1234567", ["by ", "1", "234", "567"]),
        ("kimi-k2", "汉字Abc漢", ["汉字", "Abc", "漢"]),
        ("bloom", "a, b. c", ["a", ",", " b", ".", " c"]),
        ("gemma4", "a b\n\nc", ["a b", "\n\n", "c"]),
        ("ufakzeka", "it's", ["it", "'s"]),
        ("chameleon", "xIMGIMGABZ\n12", ["x", "IMGIMGABZ", "\n", "1", "2"]),
        ("jais-2", "a" + " " * 7 + "b", ["a", " " * 4, "  ", " b"]),
    ],
)
def test_pieces_by_hand(name: str, text: str, pieces: list[str]) -> None:
    assert split(name, text) == pieces
