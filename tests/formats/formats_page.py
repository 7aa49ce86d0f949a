"""Writes docs/formats.md: what is read, computed packed and written, and what each format was checked against.

    python tests/formats/formats_page.py

What follows from the tables of the code and of the tests is taken from there; what is left are the facts below, told by
hand. A format that the code has and no fact tells of is an error.
"""

import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

import numpy as np
from ggml_goldens import GOLDENS, ONLY_WEIGHED, OTHERWISE
from test_export_packed import CASES, OTHERS
from test_gguf_blocks import DECODED_BY_GGUF_PY, NOT_IN_GGUF_PY, WRITTEN
from test_gguf_model import TYPES
from test_onnx import FAMILIES
from test_onnx_export import KINDS as EXPORTED

from converters.gguf.mix_table import MIXES
from converters.gguf.mixes import NEED_IMPORTANCE
from converters.onnx.genai_config import KINDS as GENAI
from converters.onnx.uses import MICROSOFT, OPERANDS
from converters.packed import auto_round, awq, compressed, gptq, hqq, modelopt
from converters.packed.source import METHODS, UNREAD
from converters.packed.write import MAKERS, methods_for
from forge_jax.cli.convert import KINDS, PACKED
from forge_jax.onnx_export.writing import IR_VERSION
from forge_jax.params import Param
from forge_jax.quantization import encode_leaf, packer
from forge_jax.quantization.ggml import GGML_TYPES, WEIGHED
from forge_jax.quantization.ggml.codec import DECODERS, ENCODERS
from forge_jax.quantization.packers import SMALL

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
COLUMNS = 4096  # of the rows whose bits are counted

Row = Sequence[str]

FILES: Mapping[str, Row] = {
    "safetensors": (
        "one file, shards with their index or without it, a HuggingFace directory; before PyTorch files beside it",
        "where the config says how (below)",
        "`huggingface` (shards and index), `safetensors` (one file, the config in its metadata)",
        "the safetensors package: values, and the bytes of what is written; transformers' logits of an export",
    ),
    "PyTorch `.bin`, `.pt`, `.pth`": (
        "zip and older files of torch.save, either byte order, shards with their index; the pickle is never run",
        "where the config says how (below)",
        "no; write safetensors",
        "torch.save of today, and two files that torch made",
    ),
    "GGUF": (
        "versions 1 to 3, either byte order (big-endian IQ2_XXS is refused), split files, every type (below)",
        "yes",
        "`gguf`: version 3, little-endian, one file",
        "gguf-py both ways; logits of llama.cpp's files; its converter's layout",
    ),
    "ONNX": (
        "a decoder's graph, external data beside it (below)",
        "int8 and blocks of 2, 4 and 8 bits (below)",
        "`onnx`: opsets {opsets}; packed leaves stay so with `export_onnx(packed=True)`",
        "onnxruntime: logits of {exported} families in the ordinary tests, of every golden in the slow ones",
    ),
    "orbax": (
        "a tree of ours, any way that orbax stores arrays",
        "yes, if it was written packed",
        "`orbax`: leaves as they are, packed ones too",
        "orbax itself: both read what the other wrote",
    ),
}
"""Of every kind of file: read, kept packed, written, checked against."""

GRAPHS: Mapping[str, Row] = {
    "forge-jax, `export_onnx`": (
        "yes, with `packed=True`",
        "parameters bit for bit, of every golden in the slow tests",
    ),
    "torch, TorchScript (with past, without)": (
        "-",
        "logits of reference exports by onnxruntime, 1e-5; in the slow tests, weights of {families} families",
    ),
    "torch, dynamo": ("-", "logits of a reference export, 1e-5"),
    "optimum (with past; merged)": ("-", "logits of a reference export, 1e-5; merged: a graph made by the test"),
    "ONNX Runtime GenAI": (
        "-",
        "the spec from graphs that its builder (0.18) wrote; their weights in the slow tests, where it is installed",
    ),
    "int8, dynamic (`MatMulInteger`)": (
        "yes",
        "logits within 5e-2 of onnxruntime, which rounds activations too; a real model's greedy ids",
    ),
    "int8, static (`DequantizeLinear`, `QLinearMatMul`, `QGemm`)": (
        "yes",
        "values against onnxruntime; products of integers: a formula in the test",
    ),
    "int4 (`DequantizeLinear`)": ("yes, of an even number of inputs", "values against onnxruntime"),
    "`MatMulNBits`, 2, 4, 8 bits": ("yes, where a row ends with a byte", "values against onnxruntime"),
    "`GatherBlockQuantized`, 2, 4, 8 bits": (
        "int4 yes, tables of bytes are decoded",
        "4 bits in bytes: values against onnxruntime; others: none",
    ),
    "`MoE` of swiglu": ("-", "lfm2_moe and gpt_oss of GenAI's builder, in the slow tests"),
    "`QMoE` of swiglu, 2, 4, 8 bits": ("decoded", "onnxruntime, but for 8 bits in blocks, where it rounds activations"),
}
"""Of every kind of graph: whether weights stay packed, checked against."""

ORACLE = "reference checkpoints"
METHODS_READ: Mapping[str, tuple[str, str, str, str]] = {
    "gptq": (
        "bits {gptq}; `gptq` (zeros less one) and `gptq_v2`; groups, act order, `dynamic`; words of 8, 16, 32, 64 bits",
        "yes",
        "gptq",
        "{oracle}; 5 to 7 bits and other words: a formula in the test",
    ),
    "awq": ("4 bits; {awq}", "yes", "awq", "gemm: {oracle}; gemv, gemv_fast: a formula in the test"),
    "auto-round": (
        "{auto_round}; `extra_config`",
        "yes",
        "",
        "a formula in the test; a reference checkpoint of GPTQ under its config",
    ),
    "intel/auto-round": ("as `auto-round`, by its older name", "yes", "", "a formula in the test"),
    "fp8": (
        "E4M3 and E5M2; a scale for the tensor, a row or a block of any two sizes; matrices and experts",
        "yes",
        "fp8",
        "tensor and blocks: {oracle}; rows, experts, E5M2: a formula in the test",
    ),
    "fbgemm_fp8": ("as `fp8`, with a scale a row", "yes", "", "a formula in the test"),
    "compressed-tensors": (
        "{compressed}; 1 to 8 bits; tensor, channel, group, block; act order; several groups of modules",
        "yes",
        "ct",
        "{oracle}; 1 to 8 bits, orders, MXFP8: a formula in the test",
    ),
    "modelopt": ("{modelopt}", "yes", "", "a formula in the test"),
    "mxfp4": ("experts as gpt-oss stores them", "yes", "mxfp4", "{oracle}, a formula in the test"),
    "bitsandbytes": (
        "int8; nf4 and fp4, nested scales too",
        "yes; 4 bits whose blocks go on from row to row are decoded",
        "bnb",
        "{oracle}, a formula in the test; fp4: its table only",
    ),
    "hqq": (
        "{hqq}; axis 0 and 1; scales that are floats",
        "axis 1 with whole groups a row; others are decoded",
        "",
        "a formula in the test; the hqq package, where it is installed",
    ),
}
"""Of every method: what is read, kept packed, how its reference checkpoints' names begin, checked against."""

SCHEMES = (
    *("int8", "int4"),
    *(f"int{bits}-g64" for bits in range(8, 1, -1)),
    *("int4-g32", "int4-g128", "int4-g64-asym", "int2-g32-asym"),
    *SMALL,
)

HEAD = """# Formats

Written by `python tests/formats/formats_page.py`; do not edit.

- **packed**: whether weights stay in memory as they are stored. Products decode them where they multiply, inside of the
  jitted function; the tree never holds the dense matrix.
- **written**: `forge-jax convert --to` names it.
- **checked against**: what the tests compare with. "A formula in the test" is the layout written out a second time, one
  number after another: it finds slips, not a misread specification.

"""

BLOCKS = """## Types of ggml in GGUF files

All {count} types are read. Bits are those of a number with its share of the scales. Mixes are the file types of
llama.cpp in which most matrices, or the experts, have a type; `--type` takes their names. A packed type without a mix
is one that `forge.quantize` packs in and orbax keeps. Importance: whether an importance matrix is used, and who cannot
do without. The last three columns are what a type was checked against:

- **decoding**: gguf-py, bit for bit, or the C struct, taken apart in the test;
- **encoding**: ggml's own library or gguf-py, byte for byte; (1): but for rows in which ggml has a mistake;
- **logits**: llama.cpp's, of a file that it wrote in this type; here with decoded weights. Packed leaves hold the same
  numbers, as the tests try with Q4_K_M, IQ2_XS and TQ1_0.

{table}"""

ONNX = """## ONNX graphs that are read

{table}A weight whose operator is not known is left over, and that is an error which names it. What `export_onnx`
writes is in [onnx.md](onnx.md).
{known}

A GenAI directory needs no config.json where genai_config.json and the graph say everything: of types {types}, with a
rope that is not scaled. What the graph does counts: its builder leaves out the windows of mistral and phi3, and the
scaling of a llama's yarn. Of phi and nemotron it changes the epsilon; they need their config.json. Its olmo has other
norms than olmo, and is refused.

"""

DIRECTORIES = """## Packed HuggingFace directories

By `quant_method` of `quantization_config`.

- **as it was**: `--to packed` writes the tensors that were loaded;
- **from other formats**: `--to` with the method's name takes any weights that it holds exactly;
- **cases**: reference checkpoints made with transformers. Of each a matrix is decoded and compared bit for bit, and the
  file written again and compared byte for byte; of one each of gptq, fp8 and mxfp4, logits too. They are no part of the
  repository, and the tests skip where they are missing;
- **held by**: what else holds the numbers of some of these cases exactly, as the tests try.

{table}From other formats `gptq` is written in {bits} bits, `awq` as `gemm`, `mxfp4` of experts only. Methods that are
known and not read:

{unread}"""

QUANTIZE = """## Schemes of `forge.quantize`

Bits of a number in memory, scales included, in rows of {columns}. Inputs: what products take them as. Stored as: the
methods that hold the packed matrix exactly (`export_packed`); orbax holds all, and alone `int8-dynamic`, which also
rounds its inputs. Groups of any size and `-asym` may be combined; every packed type of ggml is a scheme too ({count}
names, above).

{table}The tests check that every number becomes the nearest that its scale allows, that scales are those of the
papers, that models compute what their weights decode to, and the tables against those of bitsandbytes.
[quantisation.md](quantisation.md) has what each costs.

"""

TAIL = """## What stays packed, what is decoded

A packed weight is a `QTensor` leaf; `load(..., packed=False)` decodes all of them while reading, `model.unpacked()` and
`forge.unpacked(params)` do later, each to the dtype it is multiplied in. Decoded on load, because rows do not stand
alone or products do not sum over them:

- bitsandbytes in 4 bits where a row is no whole number of blocks; HQQ along axis 0, or with groups across rows;
- ONNX tables of bytes in blocks, rows that end within a byte, and weights from which a graph's offset is subtracted;
- packed vectors of a GGUF file, and any tensor whose numbers a family changes (adds to, or takes the logarithm of);
- experts that are stored one by one and packed in several ways.

## There and back

- safetensors to safetensors, `dtype="stored"`: the same tensors bit for bit; [architectures.md](architectures.md) has
  it for every model type.
- A packed HuggingFace directory to itself, `export_packed` or `--to packed`: the same bytes in the weights' file, for
  all {cases} reference checkpoints; the other layouts tensor by tensor. Before anything is written each weight is read
  back and compared. The language model of a composite gets other names, so it is written as from another format.
- A packed directory to another method: the same numbers bit for bit, or a refusal that names the methods that can.
- orbax: every leaf bit for bit, packed or not.
- A model to GGUF in F32 and back: bit for bit. Packed GGUF to GGUF: decoded and packed again, so bytes may differ.
- Any packed weight to plain `huggingface`, `safetensors`, and to ONNX without `packed=True`: decoded, in the dtype that
  is asked for.

## What is refused, and the way out

- Methods that are not read: load the checkpoint of the same model in bfloat16.
- compressed-tensors with a sparse format, HQQ with quantised scales, modelopt's other algorithms, AWQ in other than 4
  bits: an error says which. The same way out.
- Scales of a cache in few bits: `allow={{"kv_cache_scheme"}}` loads without them; caches here are floats.
- `export_packed` of a model none of whose weights is packed, or of one decoded on load: `export_huggingface`, or name
  a method.
- A method that cannot hold the weights exactly: one of those that the error names, or `packed=False` and dense.
- ONNX: IQ1_M with `packed=True` has a step that is not written; export it without. float8 needs opset 21.
- A directory or repository with a GGUF or ONNX file beside other weights, or several GGUFs: name one, `path:FILE`,
  `path:Q4_K_M` or `file=`. PyTorch files beside safetensors are the same weights by custom, and safetensors are taken.
- `.bin`, `.pt` and GGUF of several files are not written: safetensors, one GGUF.
"""


def table(columns: str, rows: Iterable[Row]) -> str:
    """A table in Markdown; columns are parted by commas."""
    names = columns.split(", ")
    lines = [names, ["---"] * len(names), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines) + "\n"


def listed(names: Iterable[object]) -> str:
    """Names in code type, one after another."""
    return ", ".join(f"`{name}`" for name in names) or "-"


def files() -> str:
    """The kinds of files."""
    facts = {"opsets": f"{min(IR_VERSION)} to {max(IR_VERSION)}", "exported": len(EXPORTED)}
    rows = [(name, *(cell.format(**facts) for cell in row)) for name, row in FILES.items()]
    told = " ".join(row[3] for row in rows)
    check("kinds of files", KINDS, [kind for kind in KINDS if f"`{kind}`" in told])
    return "## Files\n\n" + table("format, read, packed, written, checked against", rows)


def blocks() -> str:
    """The types of ggml."""
    columns = "type, bits, packed, encoder, importance, mixes, decoding, encoding, logits"
    return BLOCKS.format(count=len(GGML_TYPES), table=table(columns, map(ggml_row, GGML_TYPES)))


def ggml_row(name: str) -> Row:
    """What is known of a type."""
    kind, goldens = GGML_TYPES[name], json.loads(GOLDENS.read_text())
    known = {**goldens["plain"], **goldens["weighed"]}
    encoding = ["ggml" + " (1)" * (name in OTHERWISE)] * (name in known) + ["gguf-py"] * (name in WRITTEN)
    decoding = "gguf-py" if name in DECODED_BY_GGUF_PY else "C struct" if name in NOT_IN_GGUF_PY else "NumPy"
    mixes = [mix for mix, one in MIXES.items() if name in (one.base, one.experts)]
    return (
        f"`{name}`",
        f"{kind.nbytes * 8 / kind.block:.4g}",
        "yes" if name in DECODERS else "plain",
        "yes" if kind.plain or name in ENCODERS else "no",
        need(name),
        ", ".join(mixes) or "-",
        decoding,
        ", ".join(encoding) or ("NumPy" if kind.plain else "a formula in the test"),
        "yes" if name in {MIXES[mix].base for mix in TYPES} else "-",
    )


def need(name: str) -> str:
    """Whether a type uses an importance matrix."""
    if name in ONLY_WEIGHED:
        return "needed"
    if name in NEED_IMPORTANCE:
        return "used, needed by mixes"
    return "used" if name in WEIGHED else "-"


def graphs() -> str:
    """The exporters of ONNX."""
    rows = [(name, packed, checked.format(families=len(FAMILIES))) for name, (packed, checked) in GRAPHS.items()]
    operators = listed(name.removeprefix(MICROSOFT) for name in OPERANDS if name.startswith(MICROSOFT))
    known = textwrap.fill(f"Of onnxruntime's own operators with weights these are known: {operators}.", 120)
    head = "exporter or weights, packed, checked against"
    return ONNX.format(table=table(head, rows), known=known, types=listed(GENAI))


def methods() -> str:
    """The methods of HuggingFace directories."""
    check("methods that are read", METHODS, METHODS_READ)
    check("methods of convert", (*MAKERS, "packed"), PACKED)
    facts = {
        "oracle": ORACLE,
        "gptq": f"{min(gptq.BITS)} to {max(gptq.BITS)}",
        "awq": listed(awq.LAYOUTS),
        "auto_round": listed(auto_round.PACKINGS),
        "compressed": listed(compressed.FORMATS),
        "modelopt": listed(modelopt.ALGORITHMS),
        "hqq": listed(hqq.PACKINGS),
    }
    rows = []
    for name in METHODS:
        read, packed, prefix, checked = METHODS_READ[name]
        cases = [case for case in " ".join(CASES).split() if prefix and case.startswith(f"{prefix}_")]
        others = sorted({other for case in cases for other in OTHERS.get(case, "").split()})
        made = "as it was, and from other formats" if name in MAKERS else "as it was"
        cells = (read.format(**facts), packed, made, str(len(cases)), listed(others), checked.format(**facts))
        rows.append((f"`{name}`", *cells))
    return DIRECTORIES.format(
        table=table("method, read, packed, written, cases, held by, checked against", rows),
        bits=", ".join(map(str, gptq.WRITTEN)),
        unread=table("method, what it stores", [(f"`{name}`", what) for name, what in UNREAD.items()]),
    )


def schemes() -> str:
    """The schemes of `forge.quantize`."""
    rows = table("scheme, bits, inputs, stored as", map(scheme_row, SCHEMES))
    return QUANTIZE.format(columns=COLUMNS, count=len(ENCODERS), table=rows)


def scheme_row(name: str) -> Row:
    """How many bits a scheme takes, and what holds it, from a small matrix that is packed now."""
    x = np.random.default_rng(0).standard_normal((16, COLUMNS)).astype(np.float32)
    w = encode_leaf(x, Param(x.shape, (None, None), inputs=0), packer(name))
    bits = 8 * sum(part.nbytes for key, part in w.parts.items() if key not in w.scheme.whole) / x.size
    return f"`{name}`", f"{bits:.2f}", "int8" if w.scheme.rounds else "floats", listed(methods_for(w))


def check(what: str, known: Iterable[str], told: Iterable[str]) -> None:
    """Raise ValueError where the code and the page do not have the same."""
    if odd := sorted({*known} ^ {*told}):
        raise ValueError(f"{what}: {', '.join(odd)} are in the code or on the page, and not in both")


def page() -> str:
    """The whole page."""
    tail = TAIL.format(cases=len(" ".join(CASES).split()))
    return HEAD + files() + blocks() + graphs() + methods() + schemes() + tail


if __name__ == "__main__":
    PAGE.write_text(page())
