"""Mixture of experts: the chosen ones, each on its own tokens. No token is ever dropped.

Several paths give the same numbers. `every_expert` multiplies every token by every expert: the plain reference. The
others cost what was chosen and read no other weight: `grouped` sorts the tokens by expert and multiplies block by block
(blocks of one token when decoding), `ragged` does so in one product, `gathered` copies the chosen weights. `best` takes
the fastest that was measured. Where experts are spread over devices, tokens travel (`experts`).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, export

from forge_jax import kernels
from forge_jax.ops.call import Call, Context
from forge_jax.ops.experts import dispatched
from forge_jax.ops.mlp import activate, clamped, feed_forward
from forge_jax.ops.norm import norm
from forge_jax.ops.router import Routing, record, route, router_input
from forge_jax.params import Tree
from forge_jax.spec import Moe
from forge_jax.tensor import beside, chosen_in_place, contract, contract_chosen, dense, pick, take

LARGEST = 128  # tokens of a block: beyond it products get no faster, only the filling grows


def hidden(op: Moe, linear: Callable[[str], Array]) -> Array:
    """What enters the down projection, from what `linear` gives for "gate" and "up"."""
    up = linear("up")
    if not op.gated:
        return activate(op.act, up)
    if op.clamp is not None:
        return clamped(op.clamp, linear("gate"), up)
    return activate(op.act, linear("gate")) * up


def entering(op: Moe, x_RD: Array, weight_R1: Array) -> Array:
    """What the experts see, one row for each choice of a token."""
    return x_RD * weight_R1 if op.scale_input else x_RD


def leaving(op: Moe, y_RD: Array, weight_NX: Array) -> Array:
    """The sum over the choices of each token, from one row for each."""
    y_NXD = y_RD.reshape(*weight_NX.shape, -1)
    return (y_NXD if op.scale_input else y_NXD * weight_NX[..., None]).sum(1)


def every_expert(op: Moe, params: Tree, x_ND: Array, ids_NX: Array, weight_NX: Array, ctx: Context) -> Array:
    """Every expert on every token, times its weight, which is 0 where it was not chosen."""
    chosen_NXE = jax.nn.one_hot(ids_NX, params["up"].shape[0], dtype=x_ND.dtype)
    weight_NE = (chosen_NXE * weight_NX[..., None]).sum(1)
    x_NED = x_ND[:, None] * weight_NE[..., None] if op.scale_input else x_ND

    def linear(name: str) -> Array:
        y = contract("NED,EDF->NEF" if op.scale_input else "ND,EDF->NEF", x_NED, params[name])
        return y + params[f"{name}_bias"].astype(y.dtype)[None] if op.bias else y

    y_NEF = hidden(op, linear)
    return contract("NEF,EFD->ND", y_NEF if op.scale_input else y_NEF * weight_NE[..., None], params["down"])


def block_size(rows: int, experts: int) -> int:
    """Tokens that are multiplied together: about half of what an expert gets on average, a power of two.

    One where the number of rows is left open (a symbolic dimension of `jax.export`).
    """
    if export.is_symbolic_dim(rows):
        return 1
    return min(LARGEST, 1 << max(rows // experts, 1).bit_length() - 1)


def grouped(op: Moe, params: Tree, x_ND: Array, ids_NX: Array, weight_NX: Array, ctx: Context) -> Array:
    """Each expert on the tokens that chose it. An id past the last expert stands for none."""
    x, experts, ids_R = ids_NX.shape[1], params["up"].shape[0], ids_NX.reshape(-1)
    x_RD = entering(op, jnp.repeat(x_ND, x, axis=0), weight_NX.reshape(-1, 1))
    size, place_R, expert_C, used_C = blocks(ids_R, experts)
    count = expert_C.shape[0]
    x_CMD = jnp.zeros((count * size, x_RD.shape[1]), x_RD.dtype).at[place_R].set(x_RD, mode="drop")
    x_CMD = x_CMD.reshape(count, size, -1)
    alone = partial(one_by_one, op, ctx)
    if in_place(op, params, x_CMD):
        y_CMD = kernels.by_platform(params, x_CMD, expert_C, used_C, cpu=partial(in_one_call, op), default=alone)
    else:
        y_CMD = alone(params, x_CMD, expert_C, used_C)
    y_RD = y_CMD.reshape(count * size, -1).at[place_R].get(mode="fill", fill_value=0)
    return leaving(op, y_RD, weight_NX)


def one_by_one(op: Moe, ctx: Context, params: Tree, x_CMD: Array, expert_C: Array, used_C: Array) -> Array:
    """Each block through its expert, one after another; zeros for those that are not used."""

    def block(inputs: tuple[Array, Array, Array]) -> Array:
        x_MD, expert, used = inputs

        def linear(name: str) -> Array:
            y = contract("MD,DF->MF", x_MD, pick(params[name], expert))
            return y + dense(pick(params[f"{name}_bias"], expert)).astype(y.dtype)[None] if op.bias else y

        work = lambda: contract("MF,FD->MD", hidden(op, linear), pick(params["down"], expert))  # noqa: E731
        return jax.lax.cond(used, work, lambda: ctx.own(jnp.zeros(x_MD.shape, x_MD.dtype), ctx.expert_axis))

    return jax.lax.map(block, (x_CMD, expert_C, used_C))


def entries(op: Moe) -> tuple[str, ...]:
    """The weights that multiply what enters an expert."""
    return ("gate", "up") if op.gated else ("up",)


def in_place(op: Moe, params: Tree, x_CMD: Array) -> bool:
    """Whether `in_one_call` can read the weights of these experts."""
    hidden_CMF = jax.ShapeDtypeStruct((*x_CMD.shape[:2], params["down"].shape[1]), x_CMD.dtype)
    entering = [params[name] for name in entries(op)]
    return chosen_in_place(x_CMD, entering) and chosen_in_place(hidden_CMF, [params["down"]])


def in_one_call(op: Moe, params: Tree, x_CMD: Array, expert_C: Array, used_C: Array) -> Array:
    """The same with all blocks in one call of a kernel: no weight is copied, and threads share all of them."""
    names = entries(op)
    entered = contract_chosen(x_CMD, [params[name] for name in names], expert_C, used_C)
    made = dict[str, Array](zip(names, entered, strict=True))

    def linear(name: str) -> Array:
        y = made[name]
        return y + dense(params[f"{name}_bias"]).astype(y.dtype)[expert_C][:, None] if op.bias else y

    return contract_chosen(hidden(op, linear), [params["down"]], expert_C, used_C)[0]


def ragged(op: Moe, params: Tree, x_ND: Array, ids_NX: Array, weight_NX: Array, ctx: Context) -> Array:
    """The same as one product of all rows, sorted by expert, with all experts: what accelerators have a kernel for."""
    x = ids_NX.shape[1]
    ids_R = ids_NX.reshape(-1)
    order_R = jnp.argsort(ids_R, stable=True)
    sorted_R, size_E = ids_R[order_R], jnp.bincount(ids_R, length=params["up"].shape[0])
    x_RD = entering(op, x_ND[order_R // x], weight_NX.reshape(-1, 1)[order_R])

    def linear(name: str) -> Array:
        y = jax.lax.ragged_dot(x_RD, dense(params[name]).astype(x_RD.dtype), size_E)
        if not op.bias:
            return y
        return y + dense(params[f"{name}_bias"]).astype(y.dtype).at[sorted_R].get(mode="fill", fill_value=0)

    y_RD = jax.lax.ragged_dot(hidden(op, linear), dense(params["down"]).astype(x_RD.dtype), size_E)
    y_RD = jnp.where((sorted_R < size_E.shape[0])[:, None], y_RD, jnp.zeros((), y_RD.dtype))
    return leaving(op, jnp.zeros_like(y_RD).at[order_R].set(y_RD), weight_NX)


def gathered(op: Moe, params: Tree, x_ND: Array, ids_NX: Array, weight_NX: Array, ctx: Context) -> Array:
    """The same for a few tokens: the weights of every chosen expert side by side."""
    x = ids_NX.shape[1]
    held = params["up"].shape[0]
    ids_R = jnp.minimum(ids_NX.reshape(-1), held - 1)
    x_RD = entering(op, jnp.repeat(x_ND, x, axis=0), weight_NX.reshape(-1, 1))

    def linear(name: str) -> Array:
        y = jnp.einsum("RD,RDF->RF", x_RD, take(params[name], ids_R).astype(x_RD.dtype))
        return y + take(params[f"{name}_bias"], ids_R).astype(y.dtype) if op.bias else y

    y_RD = jnp.einsum("RF,RFD->RD", hidden(op, linear), take(params["down"], ids_R).astype(x_RD.dtype))
    y_RD = jnp.where((ids_NX.reshape(-1) < held)[:, None], y_RD, jnp.zeros((), y_RD.dtype))
    return leaving(op, y_RD, weight_NX)


def blocks(ids_R: Array, experts: int) -> tuple[int, Array, Array, Array]:
    """How many rows a block has, and what `places` gives of blocks of that size."""
    rows = ids_R.shape[0]
    size = block_size(rows, experts)
    if size == 1:
        return size, jnp.arange(rows), jnp.minimum(ids_R, experts - 1), ids_R < experts
    return size, *places(ids_R, experts, size, rows // size + experts)  # an expert leaves one that is not full at most


def places(ids_R: Array, experts: int, size: int, count: int) -> tuple[Array, Array, Array]:
    """Put rows into `count` blocks of `size`, a block holding rows of one expert.

    Returns each row's place (count * size for an id past the last expert), each block's expert, whether it holds any.
    """
    counts_E = jnp.bincount(ids_R, length=experts)
    blocks_E = -(-counts_E // size)
    ends_E = jnp.cumsum(blocks_E)
    order_R = jnp.argsort(ids_R, stable=True)
    sorted_R = jnp.minimum(ids_R[order_R], experts - 1)
    rank_R = jnp.arange(ids_R.shape[0]) - (jnp.cumsum(counts_E) - counts_E)[sorted_R]
    place_R = (ends_E - blocks_E)[sorted_R] * size + rank_R
    place_R = jnp.where(ids_R[order_R] < experts, place_R, count * size)
    block_C = jnp.arange(count)
    expert_C = jnp.minimum(jnp.searchsorted(ends_E, block_C, side="right"), experts - 1)
    return jnp.zeros_like(place_R).at[order_R].set(place_R), expert_C, block_C < ends_E[-1]


def best(op: Moe, params: Tree, x_ND: Array, ids_NX: Array, weight_NX: Array, ctx: Context) -> Array:
    """The path that suits the device and the number of tokens: see docs/benchmarks.md.

    Where that number is left open, the program decides between copying few weights and reading all.
    """
    rows, experts = ids_NX.size, params["up"].shape[0]

    def run(path: Callable[..., Array]) -> Callable[..., Array]:
        return lambda params, x, ids, weight: path(op, params, x, ids, weight, ctx)

    if export.is_symbolic_dim(rows):
        few = 4 * jnp.asarray(rows) <= experts
        return jax.lax.cond(few, run(gathered), run(every_expert), params, x_ND, ids_NX, weight_NX)
    wide = gathered if 8 * rows <= experts else ragged if rows <= experts else every_expert
    return kernels.by_platform(params, x_ND, ids_NX, weight_NX, cpu=run(grouped), default=run(wide))


PATHS: dict[str, Callable[..., Array]] = {
    "best": best,
    "every": every_expert,
    "gathered": gathered,
    "grouped": grouped,
    "ragged": ragged,
}


def latent(op: Moe, params: Tree, name: str, x_BTD: Array) -> Array:
    """The way to the width that the routed experts work on, or back."""
    if op.latent is None:
        return x_BTD
    y = contract("BTD,DE->BTE", x_BTD, params[name])
    return y + beside(params[f"{name}_bias"], y.ndim, y.dtype) if op.latent_bias else y


def moe(op: Moe, params: Tree, x_BTD: Array, state: Routing | None, call: Call, ctx: Context):
    """Apply the op. Returns (y_BTD, state): it remembers nothing but, if asked to, what its router did."""
    b, t, _ = x_BTD.shape
    seen_BTR = router_input(op.router, params, x_BTD, call.bus)
    ids_BTX, weight_BTX = route(op.router, params, seen_BTR, call.tokens_BT)
    weight_BTX, sinks_BTX = weight_BTX[..., : op.router.top_k], weight_BTX[..., op.router.top_k :]
    if state is not None:
        state = record(state, op.router, params, seen_BTR, ids_BTX, call.order_BT >= 0)
    if op.norm is not None:
        x_BTD = norm(op.norm, params.get("norm", {}), x_BTD)
    x_ND, ids_NX = latent(op, params, "latent_in", x_BTD).reshape(b * t, -1), ids_BTX.reshape(b * t, -1)
    weight_NX = weight_BTX.reshape(b * t, -1).astype(x_BTD.dtype)
    held = params["up"].shape[0]  # of all experts, those on this device

    def local(x_ND: Array, ids_NX: Array, weight_NX: Array) -> Array:
        return PATHS[ctx.experts](op, params, x_ND, ids_NX, weight_NX, ctx)

    if ctx.expert_axis is None:
        y_ND = local(x_ND, ids_NX, weight_NX)
    else:
        y_ND = dispatched(local, x_ND, ids_NX, weight_NX, held, ctx.expert_axis)
    y_ND = ctx.psum(y_ND)
    if op.bias:
        bias_ED = params["down_bias"].astype(x_BTD.dtype)
        weighted = weight_NX if not op.scale_input else jnp.ones_like(weight_NX)
        y_ND = y_ND + jnp.einsum("NX,NXD->ND", weighted, bias_ED.at[ids_NX].get(mode="fill", fill_value=0))
    if op.identity:
        identical = (ids_NX >= op.router.experts) & (ids_NX < op.router.experts + op.identity)
        y_ND = y_ND + x_ND * jnp.where(identical, weight_NX, 0).sum(1, keepdims=True)
    y = latent(op, params, "latent_out", y_ND.reshape(b, t, -1))
    y = y + beside(params["out_bias"], y.ndim, y.dtype) if op.out_bias else y
    if op.shared is not None:
        shared = feed_forward(op.shared, params["shared"], x_BTD, ctx, sinks_BTX if op.router.sinks else None)
        if op.shared_gate:
            shared = shared * jax.nn.sigmoid(contract("BTD,DO->BTO", x_BTD, params["shared_gate"]))
        y = y + shared
    return y, state
