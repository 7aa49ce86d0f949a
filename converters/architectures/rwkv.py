"""RWKV-4: time mixing and channel mixing, without attention."""

from dataclasses import replace

from converters.architectures.common import TRANSPOSED, decoder, end_rules, norm_rules, rename
from converters.architectures.family import Family
from converters.rules import Rule
from converters.take import Take
from forge_jax.spec import Block, Branch, ChannelMix, ModelSpec, Norm, Wkv

DEFAULTS = {
    "vocab_size": 50277,
    "context_length": 1024,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "layer_norm_epsilon": 1e-5,
    "rescale_every": 6,
}


def norm(eps: float, halvings: int) -> Norm:
    """The norm of a stream that was halved so many times.

    The reference halves the stream, and what is added to it, every few layers. A norm undoes that but for its
    epsilon, so the stream can stay as it is if epsilon grows with its square.
    """
    return Norm(eps * 4.0**halvings, "layer", bias=True)


def config(take: Take) -> ModelSpec:
    """Two branches a layer, each after a norm."""
    rename(take, {"context_length": "max_position_embeddings"})
    take.assume(DEFAULTS)
    take.config["max_position_embeddings"] = take("context_length")
    width, eps, count = take("hidden_size"), take("layer_norm_epsilon"), take("num_hidden_layers")
    every = take("rescale_every")
    halvings = [i // every if every > 0 else 0 for i in range(count + 1)]
    time, channel = Wkv(take("attention_hidden_size", width)), ChannelMix(take("intermediate_size", 4 * width))
    layers = [
        Block((Branch("time_mix", time, norm(eps, n)), Branch("channel_mix", channel, norm(eps, n))))
        for n in halvings[:-1]
    ]
    spec = decoder(take, layers, norm(1e-5, halvings[-1]))  # the last norm does not ask the config
    return replace(spec, embed_norm=norm(eps, 0))


LAYER = "rwkv.blocks.{l}"
TIME, CHANNEL = "layers.{l}.time_mix", "layers.{l}.channel_mix"
PROJECTIONS = (
    (f"{TIME}.k", f"{LAYER}.attention.key"),
    (f"{TIME}.v", f"{LAYER}.attention.value"),
    (f"{TIME}.r", f"{LAYER}.attention.receptance"),
    (f"{TIME}.out", f"{LAYER}.attention.output"),
    (f"{CHANNEL}.up", f"{LAYER}.feed_forward.key"),
    (f"{CHANNEL}.down", f"{LAYER}.feed_forward.value"),
    (f"{CHANNEL}.r", f"{LAYER}.feed_forward.receptance"),
)

RULES = (
    *end_rules("rwkv.embeddings", "rwkv.ln_out", "head"),
    *norm_rules("embed_norm", "rwkv.blocks.0.pre_ln"),
    *(Rule(ours, f"{theirs}.weight", TRANSPOSED) for ours, theirs in PROJECTIONS),
    Rule(f"{TIME}.k_mix", f"{LAYER}.attention.time_mix_key"),
    Rule(f"{TIME}.v_mix", f"{LAYER}.attention.time_mix_value"),
    Rule(f"{TIME}.r_mix", f"{LAYER}.attention.time_mix_receptance"),
    Rule(f"{TIME}.decay", f"{LAYER}.attention.time_decay"),
    Rule(f"{TIME}.bonus", f"{LAYER}.attention.time_first"),
    Rule(f"{CHANNEL}.up_mix", f"{LAYER}.feed_forward.time_mix_key"),
    Rule(f"{CHANNEL}.r_mix", f"{LAYER}.feed_forward.time_mix_receptance"),
    *norm_rules(f"{TIME}.pre", f"{LAYER}.ln1"),
    *norm_rules(f"{CHANNEL}.pre", f"{LAYER}.ln2"),
)

FAMILY = Family(("rwkv",), config, RULES, prefix="rwkv.")
