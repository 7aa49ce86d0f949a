"""The decoder: embed, run the blocks, read out. Knows no architecture, no file format and no device.

`run_loop` calls one jitted block a layer: equal blocks are traced once, and neither weights nor caches are copied.
`run_scan` scans over stacked layers: the smallest program, for training and deep models, and what is run on parameters
that are stacked already (`forge_jax.stacking`). Both give the same numbers.
"""

from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from forge_jax import ops, stacking
from forge_jax.cache import Cache, assign, recurrent, smooth_name
from forge_jax.lora import Lora
from forge_jax.ops import Call, Context, activate, norm, sinusoids
from forge_jax.ops.conv import smoothed
from forge_jax.ops.hyper import mixed
from forge_jax.ops.message import informed
from forge_jax.ops.own import own_inputs
from forge_jax.ops.recall import recall
from forge_jax.ops.streams import alternate, enter, leave
from forge_jax.params import Tree
from forge_jax.rowwise import row_by_row, with_cache
from forge_jax.spec import (
    AltUp,
    Block,
    Branch,
    Chain,
    HeadTransform,
    ModelSpec,
    Norm,
    Positions,
    Segment,
    Sinusoids,
    Sum,
    Toward,
    segments,
)
from forge_jax.tensor import contract, dense, take

Driver = Literal["loop", "scan"]
Taps = tuple[int, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inputs:
    """What enters the decoder: token ids or embeddings, and where each token stands.

    tokens_BT: ids; where embeds_BTD is given, they matter only to layers that look tokens up themselves.
    order_BT: 0, 1, 2, ... along a sequence, -1 for padding.
    coords_BTC: rotary positions where they are not the order (several axes for images and video).
    span_BT: tokens of one span > 0 see each other in both directions; None: causal.
    """

    tokens_BT: Array | None
    order_BT: Array
    embeds_BTD: Array | None = None
    coords_BTC: Array | None = None
    span_BT: Array | None = None


def inputs(ids_BT: ArrayLike, start: int = 0) -> Inputs:
    """Inputs of unpadded rows whose first token has order `start`."""
    tokens_BT = jnp.asarray(ids_BT, jnp.int32)
    order = jnp.arange(start, start + tokens_BT.shape[1], dtype=jnp.int32)
    return Inputs(tokens_BT, jnp.broadcast_to(order[None], tokens_BT.shape))


# ------------------------------------------------------------------------------------------------ one layer
def block(spec: Block, params: Tree, x_BTD: Array, state: Tree | None, call: Call, ctx: Context):
    """One layer. Returns (x_BTD, state, bus). Where there are several streams, x is [B, T, S, D]."""
    call = replace(call, bus=dict(call.bus))  # ops add to it
    memory = dict(state or {})

    def layer(x: Array) -> Array:
        return wired(spec, params, x, memory, call, ctx)

    match spec.streams:
        case None:
            x_BTD = layer(x_BTD)
        case AltUp(side=side):
            extra = lambda x: added(side, params, pre(side, params, x, call), memory, call, ctx)  # noqa: E731
            x_BTD = alternate(spec.streams, params["streams"], x_BTD, layer, extra)
        case _:
            for branch in spec.branches:
                if branch.whole:
                    x_BTD = x_BTD + added(branch, params, x_BTD, memory, call, ctx)
                    continue
                read, join = mixed(spec.streams, params[branch.name]["streams"], x_BTD)
                x_BTD = join(added(branch, params, pre(branch, params, read, call), memory, call, ctx))
    if spec.scalar:
        x_BTD = x_BTD * dense(params["scalar"]).astype(x_BTD.dtype).reshape((1,) * x_BTD.ndim)
    return x_BTD, memory if state is not None else None, call.bus


def wired(spec: Block, params: Tree, x_BTD: Array, memory: Tree, call: Call, ctx: Context) -> Array:
    """The branches of a layer; `memory` gets what they remember.

    Sequential:  x -> x + a(x) -> + m(x + a(x))        Parallel:  x -> x + a(x) + m(x)
    """
    shared = norm(spec.pre, params["pre"], x_BTD) if spec.pre else None
    entry, read, late = x_BTD, x_BTD, []
    for branch in spec.branches:
        if not branch.beside:
            source = entry if spec.parallel else x_BTD
            read = pre(branch, params, source if shared is None else shared, call)
        y = added(branch, params, read, memory, call, ctx)
        if branch.late:
            late.append(y)
            continue
        base = read if spec.residual == "normed" and not branch.beside else x_BTD
        x_BTD = joined(branch, params.get(branch.name, {}), base, y)
        if branch.after:
            x_BTD = norm(branch.after, params[branch.name].get("after", {}), x_BTD)
    return sum(late, x_BTD)


def joined(branch: Branch, params: Tree, x_BTD: Array, y_BTD: Array) -> Array:
    """The stream with what a branch gave."""
    match branch.keep:
        case Norm():
            return norm(branch.keep, params.get("keep", {}), x_BTD) + y_BTD
        case "learned":
            return x_BTD * dense(params["keep"]).astype(x_BTD.dtype)[None, None] + y_BTD
        case Toward(gain):
            part_D = jnp.abs(gain * dense(params["keep"])).astype(x_BTD.dtype)
            return x_BTD + part_D[None, None] * (y_BTD - x_BTD)
        case factor:
            return (x_BTD if factor == 1.0 else x_BTD * factor) + y_BTD


def pre(branch: Branch, params: Tree, x_BTD: Array, call: Call) -> Array:
    """What the op of a branch sees."""
    p = params.get(branch.name, {})
    if branch.recall is not None:
        x_BTD = recall(branch.recall, p.get("recall"), x_BTD, call.bus)
    if branch.message is not None:
        x_BTD = informed(branch.message, p["message"], x_BTD, call.bus)
    return norm(branch.pre, p.get("pre", {}), x_BTD) if branch.pre else x_BTD


def added(branch: Branch, params: Tree, x_BTD: Array, memory: Tree, call: Call, ctx: Context) -> Array:
    """What a branch adds to the stream, of an x that `pre` has made."""
    p = params.get(branch.name, {})
    if isinstance(branch.op, Chain):
        y = x_BTD
        for part in branch.op.branches:
            y = added(part, params, pre(part, params, y, call), memory, call, ctx)
    elif isinstance(branch.op, Sum):
        parts = [added(part, params, pre(part, params, x_BTD, call), memory, call, ctx) for part in branch.op.branches]
        y = reduce(jnp.add, parts if branch.op.keep == 0.0 else [x_BTD * branch.op.keep, *parts])
    else:
        x_BTD = x_BTD if branch.in_scale == 1.0 else x_BTD * branch.in_scale
        y, new = ops.apply(branch.op, adapted(branch, p), x_BTD, memory.get(branch.name), call, ctx)
        if new is not None:
            memory[branch.name] = new
    if branch.smooth is not None:
        held = memory.get(place := smooth_name(branch))
        y, tail = smoothed(branch.smooth, p["smooth"], y, held["tail"] if held else None, call.order_BT)
        if held is not None:
            memory[place] = {"tail": tail}
    if branch.post:
        y = norm(branch.post, p.get("post", {}), y)
    return y if branch.scale == 1.0 else y * branch.scale


def adapted(branch: Branch, params: Tree) -> Tree:
    """The parameters of an op, updated by the adapters of its branch."""
    updates = {
        name: Lora(params[name], params["adapters"][adapter.names[0]]["a"], params["adapters"][name]["b"])
        for adapter in branch.adapters
        for name in adapter.names
    }
    return params | updates


# ------------------------------------------------------------------------------------------------ drivers
jitted_block = partial(jax.jit, static_argnums=(0, 5))(block)


def whole(block: Block, own: Tree, params: Tree) -> Tree:
    """The parameters of a layer: its own, and those of the model that its branches share."""
    shares = [branch for branch in block.every() if branch.shared]
    return own | {each.name: params["shared"].get(each.shared, {}) | own.get(each.name, {}) for each in shares}


def unshared(block: Block) -> Block:
    """The layer without the names of what it shares: layers that compute the same are traced once."""
    return block.with_branches(lambda branch: replace(branch, shared=None))


def run_loop(spec: ModelSpec, params: Tree, x_BTD: Array, cache: Cache | None, call: Call, ctx: Context, taps: Taps):
    """Every layer in turn. Returns (x_BTD, the streams before the layers `taps`, the layers' new states)."""
    layers, seen, out = params["layers"], [], []
    for i, layer in enumerate(spec.layers):
        seen += [x_BTD] * (i in taps)
        state = cache.layers[i] if cache is not None else None
        own = whole(layer, layers.get(str(i), {}), params)
        x_BTD, state, bus = jitted_block(unshared(layer), own, x_BTD, state, share(call, i), ctx)
        call = replace(call, bus=bus)
        out.append(state)
    return x_BTD, seen, tuple(out)


def share(call: Call, i: Any) -> Call:
    """The call as layer `i` sees it."""
    return call if call.own is None else replace(call, own=jax.tree.map(lambda leaf: leaf[i], call.own))


def run_scan(spec: ModelSpec, params: Tree, x_BTD: Array, cache: Cache | None, call: Call, ctx: Context, taps: Taps):
    """The same, scanning over runs of equal layers, whose weights and states are stacked first if they are not yet."""
    held = cache is not None and cache.stacked
    states = None if cache is None else cache.layers if held else stacking.gather(spec, cache.layers.__getitem__)
    seen, after = (jnp.zeros_like(x_BTD),) * len(taps), []
    for s, (run, weights) in enumerate(zip(segments(spec.layers), stacking.weights(spec, params), strict=True)):

        def body(carry: Any, step: Any, run: Segment = run, call: Call = call):
            x, seen, bus, states = carry
            own, repeat = step
            for j, layer in enumerate(run.period):
                i = run.start + repeat * len(run.period) + j
                seen = tuple(jnp.where(i == tap, x, other) for tap, other in zip(taps, seen, strict=True))
                now = share(replace(call, bus=bus), i)
                state = stacking.pick(states[j], repeat) if states else None
                x, state, bus = block(layer, whole(layer, own[j], params), x, state, now, ctx)
                if states:
                    states = (*states[:j], stacking.put(states[j], state, repeat), *states[j + 1 :])
            return (x, seen, bus, states), None

        carry = (x_BTD, seen, call.bus, states[s] if states is not None else ())
        x_BTD, seen, bus, new = scan(body, carry, (weights, jnp.arange(run.repeats)), run.repeats)
        call = replace(call, bus=bus)
        after.append(new)
    return x_BTD, seen, (tuple(after) if held or cache is None else tuple(stacking.scatter(spec, tuple(after))))


def scan(body: Any, carry: Any, steps: Any, repeats: int) -> Any:
    """What `jax.lax.scan` carries; what the first step adds to the bus is added before the loop, which cannot."""
    pick = lambda k: jax.tree.map(lambda leaf: leaf[k], steps)  # noqa: E731
    if repeats > 1:
        after, _ = jax.eval_shape(body, carry, pick(0))
        if jax.tree.structure(after) == jax.tree.structure(carry):
            return jax.lax.scan(body, carry, steps)[0]
    carry, _ = body(carry, pick(0))
    return carry if repeats == 1 else jax.lax.scan(body, carry, pick(slice(1, None)))[0]


# ------------------------------------------------------------------------------------------------ ends
def embed(spec: ModelSpec, params: Tree, inputs: Inputs, ctx: Context) -> Array:
    """Token ids, or embeddings given, to the stream x_BTD."""
    if inputs.embeds_BTD is not None:
        x = inputs.embeds_BTD
    elif inputs.tokens_BT is None:
        raise ValueError("forward: neither tokens_BT nor embeds_BTD is given")
    else:
        x = lookup(params["embed"], inputs.tokens_BT, ctx)
        x = x if spec.embed_scale == 1.0 else x * jnp.asarray(spec.embed_scale, x.dtype)
    if spec.embed_norm is not None:
        x = norm(spec.embed_norm, params.get("embed_norm", {}), x)
    if "embed_in" in params:
        x = contract("BTE,ED->BTD", x, params["embed_in"])
    match spec.positions:
        case Positions(_, offset):
            x = x + take(params["positions"], jnp.maximum(inputs.order_BT, 0) + offset).astype(x.dtype)
        case Sinusoids(theta, offset):
            x = x + sinusoids(inputs.order_BT + offset, spec.dim, theta).astype(x.dtype)
    return x


def each_layers_own(spec: ModelSpec, params: Tree, x_BTD: Array, inputs: Inputs, ctx: Context) -> Array | None:
    """What each layer gets besides the stream [L, B, T, P], from the embedding and the tokens."""
    if spec.own is None:
        return None
    if inputs.tokens_BT is None:
        raise ValueError("forward: every layer of this model looks tokens up; pass tokens_BT beside embeds_BTD")
    known = (inputs.tokens_BT >= 0) & (inputs.tokens_BT < spec.own.vocab_size)
    rows = lookup(params["own"]["table"], jnp.where(known, inputs.tokens_BT, 0), ctx)
    return own_inputs(spec.own, params["own"], x_BTD, rows)


def lookup(table: Any, ids_BT: Array, ctx: Context) -> Array:
    """Rows of the embedding; where the vocabulary is split, each device adds the rows it has."""
    if ctx.axis is None:
        return take(table, ids_BT)
    rows = table.shape[0]
    local = ids_BT - jax.lax.axis_index(ctx.axis) * rows
    here = (local >= 0) & (local < rows)
    x = take(table, jnp.where(here, local, 0))
    here = here.reshape(here.shape + (1,) * (x.ndim - here.ndim))
    return ctx.psum(jnp.where(here, x, jnp.zeros((), x.dtype)))


def readout(spec: ModelSpec, params: Tree, x_BTD: Array, ctx: Context = Context()) -> Array:
    """The stream to float32 logits [B, T, V]."""
    if ctx.apart:
        one = replace(ctx, apart=False)
        return row_by_row(lambda x, _: (readout(spec, params, x, one), None), x_BTD, None)[0]
    x = norm(spec.final_norm, params.get("final_norm", {}), x_BTD) if spec.final_norm else x_BTD
    if spec.head_transform is not None:
        x = transformed(spec.head_transform, params["head_transform"], x)
    if "embed_out" in params:
        x = contract("BTD,DE->BTE", x, params["embed_out"])
    z = contract("BTD,VD->BTV", x, params["embed"]) if spec.tied else contract("BTD,DV->BTV", x, params["head"])
    z = z.astype(jnp.float32)
    if spec.head_bias:
        z = z + dense(params["head_bias"]).astype(jnp.float32)[None, None]
    if spec.token_gain is not None:
        z = z * (spec.token_gain * dense(params["token_gain"]).astype(jnp.float32))[None, None]
    if ctx.axis is not None:
        # "invarying": every device has the same logits, which shard_map can then prove of what follows
        z = jax.lax.all_gather(z, ctx.axis, axis=2, tiled=True, to="invarying")
    z = z[..., : spec.logits]
    if spec.logit_scale != 1.0:
        z = z * spec.logit_scale
    if spec.logit_softcap is not None:
        z = spec.logit_softcap * jnp.tanh(z / spec.logit_softcap)
    return z


def transformed(spec: HeadTransform, params: Tree, x_BTD: Array) -> Array:
    """What the head sees of the normalised stream."""
    y = contract("BTD,DE->BTE", x_BTD, params["dense"])
    if spec.bias:
        y = y + params["dense_bias"].astype(y.dtype)[None, None]
    return norm(spec.norm, params.get("norm", {}), activate(spec.act, y))


def hidden(
    spec: ModelSpec,
    params: Tree,
    inputs: Inputs,
    cache: Cache | None = None,
    ctx: Context = Context(),
    *,
    driver: Driver = "loop",
    taps: Taps = (),
) -> tuple[Array, Cache | None]:
    """The stream after the last layer, behind its features the streams before the layers `taps`; the advanced cache."""
    if ctx.apart:
        row = partial(hidden, spec, params, ctx=replace(ctx, apart=False), driver=driver, taps=taps)
        return with_cache(row, inputs, cache)
    moved = recurrent(spec) and not ctx.fresh and inputs.order_BT.shape[1] > 1
    rank_BT = jnp.argsort(inputs.order_BT < 0, axis=1, stable=True) if moved else None
    inputs = reordered(inputs, rank_BT)
    x, call = entered(spec, params, inputs, cache, ctx)
    run = run_scan if driver == "scan" or stacking.stacked(params) else run_loop
    x, seen, layers = run(spec, params, x, cache, call, ctx, taps)
    x = x if spec.streams is None else leave(spec.streams, params["streams"], x)
    x = jnp.concatenate([x, *seen], axis=-1) if seen else x
    if rank_BT is not None:
        x = jnp.take_along_axis(x, jnp.argsort(rank_BT, axis=1)[..., None], axis=1)
    places = {key: slot.after for key, slot in call.slots.items()}
    return x, None if cache is None else replace(cache, places=places, layers=layers)


def entered(spec: ModelSpec, params: Tree, inputs: Inputs, cache: Cache | None, ctx: Context) -> tuple[Array, Call]:
    """The stream before the first layer, and the call as `run_loop` takes it."""
    order = inputs.order_BT.astype(jnp.int32)  # places are kept so, whatever integers the caller counts in
    coords = order[..., None] if inputs.coords_BTC is None else inputs.coords_BTC
    span = jnp.zeros_like(order) if inputs.span_BT is None else inputs.span_BT
    slots = {key: assign(places, order, span) for key, places in cache.places.items()} if cache is not None else {}
    x = embed(spec, params, inputs, ctx)
    own = each_layers_own(spec, params, x, inputs, ctx)
    call = Call(order, jnp.maximum(coords, 0), span, slots, inputs.tokens_BT, own, bus={"embed": x})
    return (x if spec.streams is None else enter(spec.streams, params["streams"], x)), call


def reordered(inputs: Inputs, rank_BT: Array | None) -> Inputs:
    """The inputs with token rank_BT[b, t] of row b at place t: running states want padding at the end of a row."""
    if rank_BT is None:
        return inputs

    def move(leaf: Array) -> Array:
        return jnp.take_along_axis(leaf, rank_BT.reshape(rank_BT.shape + (1,) * (leaf.ndim - 2)), axis=1)

    return jax.tree.map(move, inputs)


def forward(
    spec: ModelSpec,
    params: Tree,
    inputs: Inputs,
    cache: Cache | None = None,
    ctx: Context = Context(),
    *,
    driver: Driver = "loop",
) -> tuple[Array, Cache | None]:
    """Logits [B, T, V] in float32 for every token, and the advanced cache. Pure.

    Without a cache the tokens see each other; with one they also see what it holds. Computed in the dtype of the
    parameters, softmax and norms in float32.
    """
    x, cache = hidden(spec, params, inputs, cache, ctx, driver=driver)
    return readout(spec, params, x, ctx), cache
