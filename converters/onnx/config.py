"""The config of an ONNX model: config.json beside the graph or above its folder, or else what GenAI's file and the
graph say together.

GenAI's genai_config.json has sizes and no numbers of the architecture. For the plain decoders that its builder knows
the graph has the rest: epsilons, the angles of the rope, widths, biases, the activation.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters.checkpoint import read_config
from converters.files import read_json
from converters.onnx.graph import Graph, integer
from converters.onnx.source import OnnxSource
from converters.onnx.uses import Use, uses

GENAI = "genai_config.json"
FOLDER = "onnx"  # where a repository keeps its graphs, below its config.json
PLAIN = ("llama", "mistral", "qwen2", "qwen3")
"""Types of which the graph says everything."""
ADVICE = "put the model's config.json beside the graph"
SIZES = ("hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
ACTIVATIONS = {"Sigmoid": "silu", "com.microsoft.QuickGelu": "quick_gelu", "Relu": "relu"}


def config_of(path: Path, source: OnnxSource) -> dict[str, Any]:
    """The config of an opened graph.

    Raises:
        FileNotFoundError: there is none, and no genai_config.json.
        ValueError: genai_config.json and the graph do not say enough.
    """
    folder = source.store.path.parent
    if (folder / "config.json").is_file():
        return read_config(path, source)
    if folder.name == FOLDER and (folder.parent / "config.json").is_file():
        return read_config(folder.parent, source)
    if (folder / GENAI).is_file():
        return from_genai(folder / GENAI, source.graph)
    return read_config(path, source)


def from_genai(file: Path, graph: Graph) -> dict[str, Any]:
    """A config from what GenAI's says and from the graph.

    Raises:
        ValueError: a type of which the graph does not say everything, or sizes that are none.
    """
    model = read_json(file)
    model = model.get("model") if isinstance(model, Mapping) else None
    decoder = model.get("decoder") if isinstance(model, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(decoder, Mapping):
        raise ValueError(f"{file}: there is no model with a decoder in it; {ADVICE}")
    kind = model.get("type")
    if kind not in PLAIN:
        raise ValueError(f"{file}: of type {kind!r} it does not say enough (it does of {', '.join(PLAIN)}); {ADVICE}")
    sizes: dict[str, Any] = {key: decoder.get(key) for key in SIZES}
    sizes |= {"head_dim": decoder.get("head_size"), "vocab_size": model.get("vocab_size")}
    sizes |= {"max_position_embeddings": model.get("context_length")}
    if odd := [key for key, value in sizes.items() if type(value) is not int or value < 1]:
        raise ValueError(f"{file}: {', '.join(odd)} are missing or no sizes; {ADVICE}")
    found = list(uses(graph))
    places = [use.node.name for use in found]
    config = {"model_type": kind, **sizes, "rms_norm_eps": epsilon(graph, file), "hidden_act": activation(graph, file)}
    config["intermediate_size"] = width(found, file)
    config["tie_word_embeddings"] = not any(name.startswith("/lm_head/") for name in places)
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta(graph, sizes["head_dim"], file)}
    if size := window(graph, file, kind):
        config["sliding_window"] = size
    if kind == "llama":
        config["attention_bias"] = any("/attn/o_proj/Add" in name for name in places)
    return config


def window(graph: Graph, file: Path, kind: str) -> int:
    """The window of every layer's attention, 0 where there is none.

    Raises:
        ValueError: layers differ, or the type has windows that its config describes in other ways.
    """
    nodes = [node for node in graph.nodes if node.op == "com.microsoft.GroupQueryAttention"]
    found = {integer(graph.attributes(node).get("local_window_size", -1)) for node in nodes} or {-1}
    if found == {-1}:
        return 0
    if len(found) > 1 or kind != "mistral":
        raise ValueError(f"{file}: the graph has windows {sorted(found)}, which a plain {kind} does not; {ADVICE}")
    return max(found)


def width(found: list[Use], file: Path) -> int:
    """The features of the feed-forward layers: the inputs of their last matrix."""
    widths = {use.expr.shape[-1] for use in found if use.matrix and "/mlp/down_proj/" in use.node.name}
    if len(widths) != 1:
        raise ValueError(
            f"{file}: the graph has feed-forward layers of widths {sorted(widths)}, expected one; {ADVICE}"
        )
    return widths.pop()


def epsilon(graph: Graph, file: Path) -> float:
    """The one epsilon of all norms, as the decimal number that it is in float32."""
    found = [graph.attributes(node).get("epsilon") for node in graph.nodes if node.op.endswith("LayerNormalization")]
    values = {value for value in found if isinstance(value, float)}
    if len(values) != 1:
        raise ValueError(f"{file}: the graph has norms of epsilon {sorted(values)}, expected one; {ADVICE}")
    return float(str(np.float32(values.pop())))


def activation(graph: Graph, file: Path) -> str:
    """The activation of the feed-forward layers."""
    inner = {node.op for node in graph.nodes if "/mlp/act_fn/" in node.name}
    known = {ACTIVATIONS[op] for op in inner if op in ACTIVATIONS}
    if len(known) != 1:
        raise ValueError(
            f"{file}: the activation of the graph is made of {sorted(inner)}, which is not known; {ADVICE}"
        )
    return known.pop()


def theta(graph: Graph, head_dim: int, file: Path) -> float:
    """The base of the rope, from the angles of position 1.

    Raises:
        ValueError: there are no such tables, or their angles are not powers of one base.
    """
    tables = [graph.constant(name) for name in ("cos_cache", "sin_cache")]
    if any(table is None or len(table.shape) != 2 or table.shape[0] < 2 for table in tables):
        raise ValueError(f"{file}: the graph has no tables cos_cache and sin_cache of two positions or more; {ADVICE}")
    cos, sin = (graph.read(name).astype(np.float64)[1] for name in ("cos_cache", "sin_cache"))
    pairs = cos.size
    if 2 * pairs != head_dim or sin.size != pairs or pairs < 2:
        raise ValueError(f"{file}: {pairs} angles for heads of {head_dim} features; {ADVICE}")
    angles = np.arctan2(sin, cos)
    base = float(angles[1]) ** -(head_dim / 2) if angles[1] > 0 else 0.0
    nearest = round(base, 1) if np.isclose(base, round(base, 1), 2e-4, 0) else base
    if not np.allclose(angles, nearest ** -(np.arange(pairs) * 2 / head_dim) if nearest else 0, 1e-4, 1e-6):
        raise ValueError(f"{file}: the angles of the graph are not powers of one base: the rope is scaled; {ADVICE}")
    return nearest
