"""From a path or a hub id to a model: find the files, understand them, place the weights. Part of the front.

Weights go tensor by tensor from the file to the device in the dtype asked for; the host never holds the whole model.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from tqdm.auto import tqdm

from converters.checkpoint import Checkpoint, open_checkpoint
from converters.files import read_json
from converters.heads import read_head
from converters.packed import Packing
from converters.tokenizer import Tokenizer, from_directory, from_gguf
from forge_jax import parallel
from forge_jax.compilation import keep_programs
from forge_jax.generation.programs import LOCAL, Programs
from forge_jax.generation.speculation import MtpHead
from forge_jax.hub import resolve
from forge_jax.kernels import available, status, waits
from forge_jax.large_pages import LargePages
from forge_jax.params import Tree, abstract, count, flatten
from forge_jax.progress import Progress
from forge_jax.quantization.swift import Kernels, swift
from forge_jax.sampling import Vocabulary
from forge_jax.spec import ModelSpec, Positions, windowed
from forge_jax.tensor import QTensor, unpacked

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclass(frozen=True)
class Model:
    """A model as it was loaded: immutable, its parameters a plain pytree.

    config: the HuggingFace-style config it was understood from. generation: the checkpoint's own sampling defaults.
    stored: the storage type of each parameter in the checkpoint, by our path; what an export goes back to.
    packing: how the checkpoint packed its weights, where they stayed packed; what writing them again goes back to.
    mesh, programs: the devices that the parameters are split over, and what a session calls on them.
    mtp: the modules that guess further tokens, if they were asked for: a drafter for `draft=`.
    """

    spec: ModelSpec
    params: Tree
    tokenizer: Tokenizer | None
    config: Mapping[str, Any]
    path: Path | None = None
    format: str = "huggingface"
    stored: Mapping[str, str] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    packing: Packing | None = None
    mesh: Mesh | None = None
    programs: Programs = LOCAL
    mtp: MtpHead | None = None

    def __repr__(self) -> str:
        """Kind, size, dtype and where from."""
        sizes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.params)) / 1e6
        kinds = ", ".join(sorted({str(leaf.dtype) for leaf in jax.tree.leaves(self.params)}))
        return (
            f"Model({self.config.get('model_type')}, {count(self.spec):,} parameters, {len(self.spec.layers)} layers, "
            f"{kinds}, {sizes:,.0f} MB, context {self.spec.max_seq_len}, from {self.path})"
        )

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The bytes of the tokens, for constraints; None without a tokenizer."""
        return Vocabulary(self.tokenizer.pieces, self.tokenizer.special_ids) if self.tokenizer is not None else None

    def unpacked(self) -> "Model":
        """The same model with its packed weights decoded, each to the dtype it is multiplied in."""
        return replace(self, params=unpacked(self.params))


def load(
    name: str | Path,
    *,
    dtype: DTypeLike | str = "auto",
    revision: str | None = None,
    subfolder: str | None = None,
    file: str | None = None,
    allow: Iterable[str] = (),
    max_seq_len: int | None = None,
    window: int | None = None,
    sinks: int = 4,
    packed: bool = True,
    mesh: Mesh | None = None,
    mtp: bool = False,
    kernels: Kernels | None = None,
    progress: bool = True,
) -> Model:
    """Load a checkpoint of any format that the library reads.

    Args:
        name: a directory, a file, a hub id ("org/name", "org/name@revision", "org/name:Q4_K_M") or "smollm2". Of
            directories and repositories that hold safetensors and torch files, which are the same weights by custom,
            safetensors are taken. A GGUF or ONNX file beside those, or beside others, is chosen by ":FILE" or, if it is
            a GGUF, by a type (":Q4_K_M"); of a split one all files are read.
        dtype: of the parameters. "auto": float32 on a CPU; on an accelerator bfloat16, or float16 if that is what the
            checkpoint has. "stored": every tensor as it is. Or float32, bfloat16, float16, by name or as a dtype. Of
            weights that stay packed it is what they are multiplied in.
        allow: config keys that may stay unread, if an error named them and they do not matter.
        max_seq_len: look at more (or fewer) tokens than the config names. Rotary positions allow it; how well the
            model does beyond what it was trained for is another matter.
        window, sinks: every layer that looks back on all tokens sees only the last `window` and the first `sinks`, so
            that texts have no end (see `forge_jax.spec.windowed`).
        packed: weights that are packed in the checkpoint stay so, as `QTensor` leaves; False decodes them all.
        mesh: split the weights over the axis "model" of these devices (`forge_jax.parallel.make_mesh`); each tensor
            goes straight to its shards.
        mtp: also read the modules for multi-token prediction, as `Model.mtp`; they draft in speculative decoding.
        kernels: lay weights out for the kernels for CPUs (`forge_jax.kernels`), which packed weights have anyway.
            "exact": matrices of 16 bits in the checkpoint stay so and are multiplied in float32: the numbers of float32
            from half the memory. "rounded": besides, products with packed weights of whole numbers
            (`forge_jax.quantization.tiles`) round their inputs to int8, 32 at a time, as llama.cpp's do: faster, and
            not quite the same numbers; on one device only.
        progress: show a bar that tells reading, decoding and placing apart, and what is compiled first.

    Raises:
        FileNotFoundError: no such file, directory or hub id.
        ValueError: an unknown format or architecture, config keys not understood, tensors missing, unused, misshapen
            or with NaN; kernels that there are not. The message names them.
    """
    keep_programs()
    make_kernels(progress)
    caster(dtype)  # a dtype that there is not is an error before anything is fetched
    check_kernels(kernels, dtype, mesh)
    path = resolve(name, revision=revision, subfolder=subfolder, file=file, progress=progress)
    checkpoint = open_checkpoint(path, allow=allow)
    cast = caster(dtype, checkpoint.half)
    try:
        put = parallel.placer(checkpoint.spec, mesh) if mesh is not None else device_putter()
        described = dict(flatten(abstract(checkpoint.spec)))

        def placed(path: str, values: Any) -> Any:
            return put(path, cast(path, swift(values, described[path], kernels)))

        model = read_model(checkpoint, placed, progress, packed)
        if mtp:
            spec, modules = read_head(checkpoint, lambda path, values: jnp.asarray(cast(path, values)))
            model = replace(model, mtp=MtpHead(spec, modules, max(2, len(modules))))
        model = model if max_seq_len is None else replace(model, spec=with_context(model.spec, max_seq_len))
        model = model if window is None else replace(model, spec=windowed(model.spec, window, sinks))
        return model if mesh is None else replace(model, mesh=mesh, programs=parallel.programs(mesh))
    finally:
        checkpoint.source.close()


def make_kernels(progress: bool) -> None:
    """Compile kernels if that waits, as it does once on a machine, and with `progress` say what takes so long."""
    if waits():
        if progress:
            tqdm.write("compiling kernels for this processor, which is done once", file=sys.stderr)
        available()


def check_kernels(kernels: Kernels | None, dtype: DTypeLike | str, mesh: Mesh | None = None) -> None:
    """Raise ValueError for kernels that there are not, that multiply in another dtype, or whose weights are not cut."""
    if kernels is None:
        return
    if kernels not in (known := get_args(Kernels)):
        raise ValueError(f"load: kernels = {kernels!r}; expected {' or '.join(map(repr, known))}, or None")
    if not available():
        reason = status().reason or f"the default device is a {jax.default_backend()}"
        raise ValueError(f"load: kernels = {kernels!r}, and there are none: {reason}")
    if dtype != "auto" and (dtype == "stored" or computing(dtype) != jnp.float32):
        raise ValueError(f"load: kernels = {kernels!r} multiply in float32, and dtype is {dtype!r}; leave one out")
    if kernels == "rounded" and mesh is not None:
        raise ValueError("load: kernels = 'rounded' lays weights out for one device, and there is a mesh; take 'exact'")


def read_model(checkpoint: Checkpoint, place: Callable[[str, Any], Any], progress: bool, packed: bool = True) -> Model:
    """Read the weights and the tokenizer of an understood checkpoint."""
    if checkpoint.left_out:
        parts = sorted({name.removeprefix("model.").partition(".")[0] for name in checkpoint.left_out})
        warnings.warn(
            f"{checkpoint.path}: only the language model is loaded; {len(checkpoint.left_out)} tensors of other parts "
            f"({', '.join(parts)}) are left out, and inputs that are not text cannot be given",
            stacklevel=3,
        )
    tokenizer, generation = read_text_side(checkpoint)
    check_vocabulary(checkpoint, tokenizer)
    total = sum(checkpoint.source.tensors[i.theirs].nbytes for i in checkpoint.found)
    with Progress(total, str(checkpoint.path.name), show=progress) as bar:

        def placed(path: str, values: Any) -> Any:
            check_finite(checkpoint.path, path, values)
            with bar.stage("placing"):
                return place(path, values)

        params = checkpoint.read(placed, bar, packed=packed)
        with bar.stage("placing"):
            jax.block_until_ready(params)
    stored = {path: checkpoint.source.tensors[i.theirs].dtype for i in checkpoint.found for path in i.paths}
    return Model(
        checkpoint.spec,
        params,
        tokenizer,
        MappingProxyType(dict(checkpoint.config)),
        checkpoint.path,
        checkpoint.source.format,
        MappingProxyType(stored),
        MappingProxyType(generation),
        MappingProxyType(dict(bar.seconds)),
        checkpoint.packing() if packed else None,
    )


def with_context(spec: ModelSpec, max_seq_len: int) -> ModelSpec:
    """The spec with another context.

    Raises:
        ValueError: not a positive number, or more than a learned table of positions has.
    """
    size = spec.positions.size if isinstance(spec.positions, Positions) else None
    if max_seq_len <= 0 or (size is not None and max_seq_len > size):
        most = "a positive number" if size is None else f"1 to {size}, its table of positions"
        raise ValueError(f"load: max_seq_len = {max_seq_len}; expected {most}")
    return replace(spec, max_seq_len=max_seq_len)


def device_putter() -> Callable[[str, Any], Any]:
    """The function that puts a leaf of host arrays on the default device."""
    pages = LargePages() if jax.default_backend() == "cpu" else None

    def put(path: str, leaf: Any) -> Any:
        # other leaves may be trained, and what they are trained to takes their place only where JAX owns it
        return jax.device_put(leaf) if pages is None or not isinstance(leaf, QTensor) else pages.put(leaf)

    return put


def caster(dtype: DTypeLike | str, half: str = "bfloat16") -> Callable[[str, Any], Any]:
    """The function that casts a leaf of host arrays, of the parameter at a path, as `load` was told to.

    Args:
        half: what "auto" narrows float32 to on an accelerator.

    Raises:
        ValueError: a dtype of no known name, or none that a model computes in; and from the function, as `narrowed`.
    """
    on_cpu = jax.default_backend() == "cpu"
    given = dtype if dtype in ("auto", "stored") else computing(dtype)

    def target(values: np.ndarray) -> Any:
        if not jnp.issubdtype(values.dtype, jnp.floating) or given == "stored":
            return values.dtype
        if given == "auto":
            return jnp.float32 if on_cpu else values.dtype if values.dtype.itemsize == 2 else DTYPES[half]
        return given

    wide = jnp.dtype(target(np.empty((), np.float32))).name  # what packed weights decode to

    def cast(path: str, leaf: Any) -> Any:
        if isinstance(leaf, QTensor):
            return replace(leaf, dtype=wide)
        return np.ascontiguousarray(narrowed(leaf, target(leaf), path))

    return cast


def computing(dtype: DTypeLike | str) -> Any:
    """A dtype that a model computes in.

    Raises:
        ValueError: it is none.
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise ValueError(f"load: dtype {name!r} is unknown; expected auto, stored, {', '.join(DTYPES)}")
    return DTYPES[name]


def read_text_side(checkpoint: Checkpoint) -> tuple[Tokenizer | None, dict[str, Any]]:
    """The tokenizer (None where the checkpoint has none) and the sampling defaults."""
    if checkpoint.source.format == "gguf":
        kind = checkpoint.source.metadata.get("tokenizer.ggml.model", "none")
        return (from_gguf(checkpoint.source.metadata) if kind not in ("none", "no_vocab") else None), {}
    directory = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    file = directory / "generation_config.json"
    generation = read_json(file) if file.exists() else {}
    if not isinstance(generation, dict):
        raise ValueError(f"{file}: expected a JSON object, found {type(generation).__name__}")
    try:
        tokenizer = from_directory(directory)
    except FileNotFoundError:  # no file of a tokenizer at all; methods that need one say so
        tokenizer = None
    return tokenizer, generation


def check_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> None:
    """Raise ValueError if the tokenizer can give ids that the embedding has no row for."""
    if tokenizer is not None and tokenizer.vocab_size > checkpoint.spec.vocab_size:
        raise ValueError(
            f"{checkpoint.path}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding "
            f"{checkpoint.spec.vocab_size} rows; they belong to different models"
        )


def check_finite(where: Path, path: str, leaf: Any) -> None:
    """Raise ValueError if a leaf has NaN or infinite numbers, which would spoil every logit."""
    # of packed weights the scales are looked at
    arrays = leaf.parts.values() if isinstance(leaf, QTensor) else (leaf,)
    if not all(finite(values) for values in arrays):
        raise ValueError(f"{where}: {path} has NaN or infinite values; the file is damaged or badly converted")


def finite(values: np.ndarray) -> bool:
    """Whether all numbers are finite; made for large arrays."""
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return True
    if values.dtype.itemsize == 1:
        return bool(np.isfinite(np.arange(256, dtype=np.uint8).view(values.dtype))[values.view(np.uint8)].all())
    if values.dtype.itemsize == 2 and values.dtype != np.float16:
        bits = np.ascontiguousarray(values).view(np.uint16)
        return not ((bits & 0x7F80) == 0x7F80).any()
    with np.errstate(over="ignore", invalid="ignore"):  # the sum of sound numbers may overflow
        return bool(np.isfinite(values.sum(dtype=np.float32)) or np.isfinite(values).all())


def narrowed(values: np.ndarray, dtype: DTypeLike, path: str) -> np.ndarray:
    """The values in another dtype, without a copy if they have it.

    Raises:
        ValueError: a finite value becomes infinite: float16 ends at 65504.
    """
    with np.errstate(over="ignore"):
        out = values.astype(dtype, copy=False)
    if out.dtype == np.float16 and values.dtype != np.float16 and not np.isfinite(out).all():
        raise ValueError(f"{path} has values beyond float16's 65504; use bfloat16 or float32")
    return out
