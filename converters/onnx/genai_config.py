"""A config out of what ONNX Runtime GenAI says of a model and what the graph of its builder does.

genai_config.json has sizes and no numbers of the architecture. The graph has the rest: epsilons, the angles of the
rope, widths, biases, the activation, windows, factors. What each type of model has is in `KINDS`.

Types whose graph does not say it are not there: the builder gives phi and nemotron norms of another epsilon than
their config's, and olmo norms of another kind.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from converters.files import quote, read_json
from converters.onnx.data import FLOATS
from converters.onnx.graph import Graph
from converters.onnx.messages import Node
from converters.onnx.uses import Use, uses

ADVICE = "put the model's config.json beside the graph"
SIZES = ("hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
ATTENTION = "com.microsoft.GroupQueryAttention"
ACTIVATIONS = {"Sigmoid": "silu", "com.microsoft.QuickGelu": "quick_gelu", "Relu": "relu"}
GELUS = {b"tanh": "gelu_pytorch_tanh", b"none": "gelu"}
FACTORS = {
    "/model/embed_tokens/Mul": "embedding",
    "/residual_mul/Mul": "residual",
    "/lm_head/Mul": "logits",
    "/lm_head/softcap/Div": "cap",
}
"""The nodes that multiply or divide by a number of the architecture, by a part of their names."""
EMBEDDING_NEAR = 0.01  # the builder rounds the square root of a width to two digits
MOST_DIGITS = 7  # of a base of angles
MOST_NEAR = 0.01  # how uncertain such a base may be, relatively
NEAR_ENOUGH = 1e-4  # and one that is no round number
SMALLEST_ANGLE = 1e-4  # that float16 has with all its digits


class Built:
    """The graph of the builder, and what is asked about it. Errors name `file`, genai_config.json."""

    def __init__(self, file: Path, graph: Graph) -> None:
        self.file, self.graph = file, graph
        self.uses = list(uses(graph))
        self.nodes: Mapping[str, Node] = {node.name: node for node in graph.nodes}

    def error(self, message: str) -> ValueError:
        """An error, with the way out."""
        return ValueError(f"{self.file}: {message}; {ADVICE}")

    def has(self, place: str) -> bool:
        """Whether any node stands at a place, a part of its name."""
        return any(place in name for name in self.nodes)

    def at(self, place: str) -> list[Use]:
        """The stored tensors that nodes at a place use."""
        return [use for use in self.uses if place in use.node.name]

    def attentions(self, key: str) -> list[float]:
        """A number that every attention has as an attribute, in the order of the layers; -1 where it has none."""
        found = (self.graph.attributes(node).get(key) for node in self.graph.nodes if node.op == ATTENTION)
        return [value if isinstance(value, int | float) else -1 for value in found]

    def only(self, what: str, found: set[Any]) -> Any:
        """The one value of a number that a config has only one of.

        Raises:
            ValueError: there are others, or none.
        """
        if len(found) != 1:
            raise self.error(f"the graph has {what} {sorted(found, key=str)}, expected one")
        return found.pop()

    def factors(self) -> dict[str, float]:
        """Every number of `FACTORS` that is there, as a decimal of its precision."""
        found: dict[str, set[float]] = {}
        for name, node in self.nodes.items():
            for key in (key for place, key in FACTORS.items() if place in name):
                stored = [value for value in node.inputs if value in self.graph.tensors]
                numbers = [self.graph.read(value) for value in stored if self.graph.tensors[value].shape in ((), (1,))]
                if len(numbers) != 1 or not numbers[0].all() or not np.isfinite(numbers[0]).all():
                    raise self.error(f"node {quote(name)} does not multiply by a stored number other than 0")
                found.setdefault(key, set()).add(float(str(numbers[0].reshape(-1)[0])))
        return {key: self.only(f"factors of {key}", values) for key, values in found.items()}


Read = Callable[[Built], dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """What a config says of a type of model.

    factors: what of `FACTORS` it knows. read: what gives the keys that only some types have. act: the key of the
    activation; without one it is SiLU.
    """

    model_type: str
    factors: tuple[str, ...] = ()
    read: tuple[Read, ...] = ()
    act: str = "hidden_act"
    eps: str = "rms_norm_eps"


def biases(**places: str) -> Read:
    """Keys that say whether a matrix has a bias, and where that matrix is."""
    return lambda built: {key: built.has(f"{place}/Add") for key, place in places.items()}


def no_window(built: Built) -> dict[str, Any]:
    """Nothing; ValueError where an attention has a window after all."""
    if found := set(sizes_of_windows(built)) - {0}:
        raise built.error(f"the graph has windows {sorted(found)}, which its type of model has not")
    return {}


def one_window(built: Built) -> dict[str, Any]:
    """The window of every layer, None where there is none."""
    return {"sliding_window": built.only("windows", set(sizes_of_windows(built))) or None}


def windows(built: Built) -> dict[str, Any]:
    """The window of some layers, and which they are."""
    sizes = sizes_of_windows(built)
    size = built.only("windows", set(sizes) - {0} or {0})
    types = ["sliding_attention" if each else "full_attention" for each in sizes]
    return {"layer_types": types} | ({"sliding_window": size} if size else {})


def sizes_of_windows(built: Built) -> list[int]:
    """The window of every attention; 0 is none."""
    return [size if isinstance(size, int) and size > 0 else 0 for size in built.attentions("local_window_size")]


def scale_of(built: Built) -> float:
    """What all scores are multiplied by."""
    scale = float(built.only("scales of scores", set(built.attentions("scale"))))
    if not 0 < scale < math.inf:
        raise built.error(f"the graph multiplies scores by {scale:g}")
    return scale


def capped(built: Built) -> dict[str, Any]:
    """Caps of scores and logits, None where there is none, and the number whose root scores are divided by."""
    cap = built.only("caps of scores", set(built.attentions("softcap")))
    caps = {"attn_logit_softcapping": cap or None, "final_logit_softcapping": built.factors().get("cap")}
    return {"query_pre_attn_scalar": short(scale_of(built) ** -2, 1e-5)} | caps


def root_of_width(built: Built) -> dict[str, Any]:
    """Nothing; ValueError where embeddings are not multiplied by the root of their width."""
    widths = {use.expr.shape[-1] for use in built.at("/model/embed_tokens/") if len(use.expr.shape) == 2}
    root, found = built.only("embeddings of widths", widths) ** 0.5, built.factors().get("embedding", 1.0)
    if abs(found - root) > EMBEDDING_NEAR * root:
        raise built.error(f"the graph multiplies embeddings by {found:g}, its type of model by {root:g}")
    return {}


def multipliers(built: Built) -> dict[str, Any]:
    """What granite multiplies by: embeddings, residual branches, scores, and logits, which it divides."""
    found, scale = built.factors(), np.float32(scale_of(built))
    return {
        "embedding_multiplier": found.get("embedding", 1.0),
        "residual_multiplier": found.get("residual", 1.0),
        "attention_multiplier": float(str(scale)),
        "logits_scaling": short(1 / found.get("logits", 1.0), 1e-6),
    }


def convolutions(built: Built) -> dict[str, Any]:
    """Which layers of lfm2 are convolutions, and what these are like."""
    layers = [name.split("/")[2] for name in built.nodes if "/operator_layernorm/" in name]
    convolved = {name.split("/")[2] for name in built.nodes if "/conv/in_proj/" in name}
    kernels = {use.expr.shape[-1] for use in built.at("/conv/CausalConvWithState") if use.role == "weight"}
    return {
        "layer_types": ["conv" if layer in convolved else "full_attention" for layer in layers],
        "conv_L_cache": built.only("convolutions of widths", kernels),
        "conv_bias": built.has("/conv/in_proj/Add"),
        "block_auto_adjust_ff_dim": False,  # the width is that of the graph
    }


BOTH = biases(attention_bias="/attn/o_proj", mlp_bias="/mlp/down_proj")
ONE = biases(attention_bias="/attn/o_proj")
KINDS = {
    "ernie4_5": Kind("ernie4_5", read=(no_window, biases(use_bias="/attn/o_proj"))),
    "gemma": Kind("gemma", ("embedding",), (no_window, root_of_width, ONE)),
    "gemma2": Kind("gemma2", ("embedding", "cap"), (windows, root_of_width, capped, ONE), "hidden_activation"),
    "granite": Kind("granite", ("embedding", "residual", "logits"), (no_window, multipliers, BOTH)),
    "hunyuandensev1": Kind("hunyuan_v1_dense", read=(no_window, ONE)),
    "lfm2": Kind("lfm2", read=(no_window, convolutions), act="", eps="norm_eps"),
    "llama": Kind("llama", read=(no_window, BOTH)),
    "mistral": Kind("mistral", read=(one_window,)),
    "phi3": Kind("phi3", read=(one_window,)),
    "qwen2": Kind("qwen2", read=(no_window,)),
    "qwen3": Kind("qwen3", read=(no_window, ONE)),
}
"""By the type that genai_config.json names. Each was built from a checkpoint, and gave that checkpoint's spec."""


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
    name = model.get("type")
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"{file}: of type {name!r} it does not say enough (it does of {', '.join(KINDS)}); {ADVICE}")
    sizes: dict[str, Any] = {key: decoder.get(key) for key in SIZES}
    sizes |= {"head_dim": decoder.get("head_size"), "vocab_size": model.get("vocab_size")}
    sizes |= {"max_position_embeddings": model.get("context_length")}
    if odd := [key for key, value in sizes.items() if type(value) is not int or value < 1]:
        raise ValueError(f"{file}: {', '.join(odd)} are missing or no sizes; {ADVICE}")
    return described(Built(file, graph), KINDS[name], sizes)


def described(built: Built, kind: Kind, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The config of one type of model."""
    if odd := sorted(built.factors().keys() - set(kind.factors)):
        raise built.error(f"the graph has factors of {', '.join(odd)}, which a plain {kind.model_type} does not")
    act = activation(built)
    if not kind.act and act != "silu":
        raise built.error(f"the activation of the graph is {act}, that of a {kind.model_type} is silu")
    config = {"model_type": kind.model_type, **sizes, kind.eps: epsilon(built)}
    config |= {kind.act: act} if kind.act else {}
    widths = {use.expr.shape[-1] for use in built.at("/mlp/down_proj/") if use.matrix}
    config["intermediate_size"] = built.only("feed-forward layers of widths", widths)
    config["tie_word_embeddings"] = tied(built)
    config["rope_parameters"] = rope(built, sizes["head_dim"])
    for read in kind.read:
        config |= read(built)
    return config


def tied(built: Built) -> bool:
    """Whether the head is the embedding: the graph uses one tensor for both."""
    head, embed = (
        {use.expr.main().leaf for use in built.at(place) if len(use.expr.shape) == 2}
        for place in ("/lm_head/", "/model/embed_tokens/")
    )
    return not head or bool(head & embed)


def epsilon(built: Built) -> float:
    """The one epsilon of all norms, as the decimal number that it is in float32."""
    nodes = [node for node in built.graph.nodes if node.op.endswith("LayerNormalization")]
    found = (built.graph.attributes(node).get("epsilon") for node in nodes)
    return float(str(np.float32(built.only("norms of epsilon", {x for x in found if isinstance(x, float)}))))


def activation(built: Built) -> str:
    """The activation of the feed-forward layers."""
    nodes = [node for name, node in built.nodes.items() if "/mlp/act_fn/" in name]
    known = {ACTIVATIONS[node.op] for node in nodes if node.op in ACTIVATIONS}
    gelus = [built.graph.attributes(node).get("approximate", b"none") for node in nodes if node.op == "Gelu"]
    known |= {GELUS[way] for way in gelus if isinstance(way, bytes) and way in GELUS}
    if len(known) != 1 or built.has("/mlp/square/"):
        inner = sorted({node.op for node in nodes})
        raise built.error(f"the activation of the graph is made of {inner}, which is not known")
    return known.pop()


def rope(built: Built, head_dim: int) -> dict[str, Any]:
    """The rope, from the angles of position 1; features that have none lie behind those that turn.

    Raises:
        ValueError: there are no such tables, or their angles are not powers of one base.
    """
    graph = built.graph
    tables = [graph.constant(name) for name in ("cos_cache", "sin_cache")]
    if any(t is None or len(t.shape) != 2 or t.shape[0] < 2 or t.dtype not in FLOATS for t in tables):
        raise built.error("the graph has no tables cos_cache and sin_cache of two positions or more")
    stored = graph.read("cos_cache"), graph.read("sin_cache")
    cos, sin = (table.astype(np.float64)[1] for table in stored)
    pairs = cos.size
    if 2 * pairs > head_dim or sin.size != pairs or pairs < 2:
        raise built.error(f"{pairs} angles for heads of {head_dim} features")
    angles = np.arctan2(sin, cos)
    coarse = built.error(f"the angles of the graph are {stored[1].dtype}, too coarse to tell their base")
    last = int(np.flatnonzero(angles > SMALLEST_ANGLE)[-1]) if angles[1] > SMALLEST_ANGLE else 0
    near = 4 * float(ml_dtypes.finfo(stored[1].dtype).eps) * pairs / max(last, 1)  # of a base told by this angle
    if last and near > MOST_NEAR:
        raise coarse
    with np.errstate(over="ignore"):
        found = float(angles[last] ** -(pairs / last)) if last else 0.0
    base = short(found, near)
    if base == found and near > NEAR_ENOUGH:
        raise coarse
    if base <= 0 or not np.allclose(angles, base ** -(np.arange(pairs) / pairs), 1e-4 + near, 1e-6):
        raise built.error("the angles of the graph are not powers of one base: the rope is scaled")
    partial = {"partial_rotary_factor": 2 * pairs / head_dim} if 2 * pairs < head_dim else {}
    return {"rope_type": "default", "rope_theta": base, **partial}


def short(value: float, near: float) -> float:
    """The decimal of few digits that is this close to a number, relatively; the number itself where there is none.

    Of so few that chance would hardly bring one so close.
    """
    for digits in range(1, MOST_DIGITS + 1):
        text = float(f"{value:.{digits}g}")
        if 10.0 ** (1 - digits) > 10 * near and abs(text - value) <= near * abs(value):
            return text
    return value
