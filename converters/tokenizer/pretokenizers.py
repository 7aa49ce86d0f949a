"""The pre-tokenizers that a GGUF file can name: one table from `tokenizer.ggml.pre` to regexes and flags.

Data only: names as llama.cpp lists them (src/llama-vocab.cpp), regexes as the models' own tokenizer.json has them.
Where llama.cpp writes an approximation because std::regex knows no Unicode classes, the original stands here, since
the ids a model was trained with are those of its tokenizer.json. Nothing here knows how to merge or look up tokens.

The patterns of one entry are applied one after the other, each to the pieces that the one before has left; a match and
the text between two matches both become pieces. Syntax: Oniguruma, as in the tokenizers package.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s+(?!\S)|\s+"
_NEWLINES = r"\s*[\r\n]+|" + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"


def _cased(upper: str, lower: str, suffix: str) -> str:
    """Words cut where lower case turns to upper case: aWord → a, Word."""
    return f"{_LEAD}{upper}*{lower}+{suffix}|{_LEAD}{upper}+{lower}*{suffix}"


GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
"""GPT-2's own pattern, which the ByteLevel pre-tokenizer has built in."""
_DIGITS_1, _DIGITS_3 = r"\p{N}", r"\p{N}{1,3}"
_SYMBOLS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|"
_LLAMA3 = rf"{_CONTRACTION}|{_LEAD}\p{{L}}+|{_DIGITS_3}{_SYMBOLS}{_NEWLINES}"
_QWEN2 = rf"{_CONTRACTION}|{_LEAD}\p{{L}}+|{_DIGITS_1}{_SYMBOLS}{_NEWLINES}"
_CASED_SYMBOLS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
_GPT4O = f"{_cased(_UPPER, _LOWER, _CONTRACTION + '?')}|{_DIGITS_3}{_CASED_SYMBOLS}{_NEWLINES}"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK3_WORDS = rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"
_DEEPSEEK3 = (_DIGITS_3, _CJK, rf"{_DEEPSEEK3_WORDS}[\r\n]*|{_NEWLINES}")
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_LINES = r"[^\n]+|[\n]+"
_NOT_HAN_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_NOT_HAN_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
# Cased letters by script, from the tokenizer.json of deepseek-llm: it was written before \p{L} was at hand.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d"
    "\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c"
    "\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _CJK
)
_WHITESPACE_CASCADE = "|".join(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))


@dataclass(frozen=True)
class PreTokenizer:
    """How a byte-level BPE vocabulary cuts a text before it merges.

    `ignore_merges`: a piece that is a token as it stands is not built from merges.
    `add_bos`: begin a text with BOS where the file does not say.
    `raw`: tokens are plain text with "▁" for a space and <0x0A> for stray bytes, not GPT-2's byte alphabet.
    `whole_newlines`: a run of newlines that is a token as it stands is not built from merges.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    raw: bool = False
    whole_newlines: bool = False


_STARCODER = PreTokenizer((_DIGITS_1, GPT2_PATTERN))
_PLAIN_GPT2 = PreTokenizer((GPT2_PATTERN,))
_PLAIN_QWEN2 = PreTokenizer((_QWEN2,))
_PLAIN_LLAMA3 = PreTokenizer((_LLAMA3,))
_PLAIN_DEEPSEEK3 = PreTokenizer(_DEEPSEEK3)
_PLAIN_GPT4O = PreTokenizer((_GPT4O,))
_PLAIN_BLOOM = PreTokenizer((_BLOOM,))
_FULL_LLAMA3 = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_GEMMA4 = PreTokenizer((_LINES,), add_bos=True, raw=True, whole_newlines=True)
_TINY_AYA = PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))
_BAILING_WORDS = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
_BAILING = PreTokenizer((_BAILING_WORDS + r"\s*[\r\n]|" + _SPACES,))

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {
        "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, r"\p{N}+", r"[0-9][0-9][0-9]")),
        "gpt-2": _PLAIN_GPT2,
        **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral"), _FULL_LLAMA3),
        **dict.fromkeys(("midm-2.0", "lfm2", "jina-v5-nano"), _FULL_LLAMA3),
        **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _PLAIN_LLAMA3),
        **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"), _PLAIN_QWEN2),
        **dict.fromkeys(("stablelm2", "hunyuan", "solar-open", "grok-2"), _PLAIN_QWEN2),
        **dict.fromkeys(("phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de"), _PLAIN_GPT2),
        **dict.fromkeys(("a.x-4.0", "mellum", "modern-bert", "exaone4", "mpt", "olmo", "jais"), _PLAIN_GPT2),
        **dict.fromkeys(("trillion", "granite-docling"), _PLAIN_GPT2),
        **dict.fromkeys(("jina-v1-en", "jina-v2-code", "roberta-bpe"), _PLAIN_GPT2),
        **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell"), _STARCODER),
        **dict.fromkeys(("exaone", "minerva-7b", "mellum2"), _STARCODER),
        **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _PLAIN_DEEPSEEK3),
        **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _PLAIN_GPT4O),
        **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), _PLAIN_BLOOM),
        **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING),
        **dict.fromkeys(("gemma4", "granite-embed-multi-311m"), _GEMMA4),
        **dict.fromkeys(("tiny_aya", "cohere2moe"), _TINY_AYA),
        "sarvam-moe": PreTokenizer((_LINES,), raw=True),
        "whitespace": PreTokenizer((r"\S+",), raw=True),
        "jais-2": PreTokenizer(
            (rf"{_CONTRACTION}|{_LEAD}\p{{L}}+|{_DIGITS_3}{_SYMBOLS}\s*[\r\n]+|{_WHITESPACE_CASCADE}|\s",)
        ),
        "minicpm5": PreTokenizer(
            (_DIGITS_3, rf"{_CONTRACTION}|{_LEAD}\p{{L}}+|\p{{N}}+{_SYMBOLS}{_NEWLINES}"), ignore_merges=True
        ),
        "deepseek-llm": PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{_DEEPSEEK_LETTERS}]+",
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
                r"\s+$",
                _DEEPSEEK_CJK,
                r"\p{N}+",
            )
        ),
        "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, _DIGITS_1)),
        "spark2_5": PreTokenizer((_DIGITS_3, _CJK, rf"{_DEEPSEEK3_WORDS}|[\r\n]|{_SPACES}", _DIGITS_1)),
        "youtu": PreTokenizer(
            (
                _YOUTU_SCRIPTS,
                f"{_cased(_UPPER, _LOWER, _CONTRACTION + '?')}|{_DIGITS_1}{_CASED_SYMBOLS}{_NEWLINES}",
            ),
            ignore_merges=True,
        ),
        "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", GPT2_PATTERN, r"[0-9][0-9][0-9]")),
        "qwen35": PreTokenizer(
            (
                rf"{_CONTRACTION}|{_LEAD}[\p{{L}}\p{{M}}]+|{_DIGITS_1}"
                rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_NEWLINES}",
            )
        ),
        "viking": PreTokenizer((_BLOOM, _DIGITS_1)),
        "tekken": PreTokenizer(
            (f"{_cased(_UPPER, _LOWER, '')}|{_DIGITS_1}{_CASED_SYMBOLS}{_NEWLINES}",),
            ignore_merges=True,
            add_bos=True,
        ),
        "chameleon": PreTokenizer(
            (
                r"<sentinel:[0-9]+>",
                r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                r"([\t\n]|    |  )",
                _DIGITS_1,
                r"[\p{P}!-/:-@\[-`{-~]",
                GPT2_PATTERN,
            ),
            add_bos=True,
        ),
        "granite-embed-multi-97m": PreTokenizer((_GPT4O,), ignore_merges=True),
        "kimi-k2": PreTokenizer(
            (
                rf"[\p{{Han}}]+|{_cased(_NOT_HAN_UPPER, _NOT_HAN_LOWER, _CONTRACTION + '?')}"
                rf"|{_DIGITS_3}{_SYMBOLS}{_NEWLINES}",
            )
        ),
        "superbpe": PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
        "seed-coder": PreTokenizer(
            (rf"{_CONTRACTION}|{_LEAD}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_NEWLINES}",)
        ),
        "ufakzeka": PreTokenizer((rf"{_LEAD}\p{{L}}+|{_DIGITS_1}{_SYMBOLS}{_NEWLINES}",)),
        # Digits in groups of three counted from the right: 1234567 → 1, 234, 567.
        "afmoe": PreTokenizer(
            (
                r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
                _AFMOE_SCRIPTS,
                rf"{_DEEPSEEK3_WORDS}[\r\n]*|{_NEWLINES}",
            )
        ),
        "laguna": PreTokenizer((_LINES, _QWEN2)),
        "exaone-moe": PreTokenizer(
            (
                rf"{_CONTRACTION}|{_LEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|{_DIGITS_1}"
                rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACES}",
            )
        ),
    }
)
