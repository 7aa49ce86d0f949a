"""The router of a mixture of experts: which experts a token goes to, and how much each weighs."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from forge_jax.ops.mlp import activate
from forge_jax.ops.norm import norm
from forge_jax.params import Tree
from forge_jax.spec import Router
from forge_jax.tensor import contract, dense, take


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routing:
    """What a router did, summed over tokens: how many, how often each expert was chosen, the probabilities that the
    softmax of the logits gave them, and the squares of the logits' logsumexp. float32."""

    tokens: Array
    chosen_E: Array
    probability_E: Array
    square: Array


def nothing_routed(experts: int) -> Routing:
    """The record before the first token."""
    return Routing(jnp.zeros(()), jnp.zeros(experts), jnp.zeros(experts), jnp.zeros(()))


def record(routing: Routing, router: Router, params: Tree, x_BTD: Array, ids_BTX: Array, real_BT: Array) -> Routing:
    """Add the tokens of one call; padding, where real_BT is False, does not count."""
    logits_BTE = router_logits(router, params, x_BTD)[..., : routing.chosen_E.shape[0]]
    real_BT = real_BT.astype(jnp.float32)
    chosen_BTE = jax.nn.one_hot(ids_BTX, logits_BTE.shape[-1]).sum(-2)
    total = lambda values_BTE: (values_BTE * real_BT[..., None]).sum((0, 1))  # noqa: E731
    return Routing(
        routing.tokens + real_BT.sum(),
        routing.chosen_E + total(chosen_BTE),
        routing.probability_E + total(jax.nn.softmax(logits_BTE)),
        routing.square + (real_BT * jax.nn.logsumexp(logits_BTE, axis=-1) ** 2).sum(),
    )


def router_input(router: Router, params: Tree, x_BTD: Array, bus: dict[str, Any]) -> Array:
    """What the logits are a linear map of: the stream, or what a small network makes of it, float32 [B, T, R]."""
    op = router.mlp
    if op is None:
        return x_BTD
    weights = params["router_mlp"]

    def linear(name: str, y_BTD: Array) -> Array:
        y_BTR = contract("BTD,DR->BTR", y_BTD, weights[name])
        return y_BTR + weights[f"{name}_bias"].astype(y_BTR.dtype)[None, None]

    h_BTR = linear("into", x_BTD.astype(jnp.float32))
    if op.reads is not None:
        h_BTR = h_BTR + bus[op.reads] * dense(weights["carry"]).astype(jnp.float32)[None, None]
    if op.publish is not None:
        bus[op.publish] = h_BTR
    y_BTR = norm(op.norm, weights.get("norm", {}), h_BTR)
    return activate(op.act, linear("l2", activate(op.act, linear("l1", y_BTR))))


def router_logits(router: Router, params: Tree, x_BTD: Array) -> Array:
    """One logit an expert, float32 [B, T, E]."""
    x_BTD = x_BTD.astype(jnp.float32)
    if router.norm is not None:
        x_BTD = norm(router.norm, params.get("router_norm", {}), x_BTD)
    logits_BTE = contract("BTD,DE->BTE", x_BTD, params["router"])
    if router.product:
        first, second = jnp.split(logits_BTE, 2, axis=-1)
        logits_BTE = (first[..., :, None] + second[..., None, :]).reshape(*first.shape[:-1], router.experts)
    logits_BTE = logits_BTE * router.logit_scale
    if router.logit_bias:
        logits_BTE = logits_BTE + params["router_bias"].astype(jnp.float32)[None, None]
    return logits_BTE if router.softcap is None else router.softcap * jnp.tanh(logits_BTE / router.softcap)


def route(router: Router, params: Tree, x_BTD: Array, tokens_BT: Array | None = None) -> tuple[Array, Array]:
    """The chosen experts and their weights: ids [B, T, X] int32 and float32 [B, T, X].

    The weights of sinks follow those of the experts.

    Raises:
        ValueError: the tokens choose, and there are none.
    """
    logits_BTE = router_logits(router, params, x_BTD)
    if router.score == "sparsemixer":
        return sparsemixer(router, logits_BTE)
    match router.score:
        case "softmax":
            score_BTE = jax.nn.softmax(logits_BTE)
        case "sigmoid":
            score_BTE = jax.nn.sigmoid(logits_BTE)
        case "sqrt_softplus":
            score_BTE = jnp.sqrt(jax.nn.softplus(logits_BTE))
        case _:
            score_BTE = logits_BTE
    count = score_BTE.shape[-1] - router.sinks
    choice_BTE = score_BTE[..., :count]
    if router.choice_bias:
        choice_BTE = choice_BTE + params["choice_bias"].astype(jnp.float32)[None, None]
    if router.table is None:
        _, ids_BTX = jax.lax.top_k(open_groups(router, choice_BTE), router.top_k)
    elif tokens_BT is None:
        raise ValueError("forward: the tokens of this model choose experts; pass tokens_BT beside embeds_BTD")
    else:
        ids_BTX = take(params["table"], tokens_BT).astype(jnp.int32)
    weight_BTX = jnp.concatenate([jnp.take_along_axis(score_BTE, ids_BTX, -1), score_BTE[..., count:]], -1)
    if router.score == "chosen_softmax":
        weight_BTX = jax.nn.softmax(weight_BTX)
    elif router.score == "chosen_sigmoid":
        weight_BTX = jax.nn.sigmoid(weight_BTX)
    if router.renorm is not None:
        size = (weight_BTX**router.renorm).sum(-1, keepdims=True) ** (1 / router.renorm)
        weight_BTX = weight_BTX / (jnp.maximum(size, router.renorm_min) + router.renorm_eps)
    if router.expert_scale:
        weight_BTX = weight_BTX * params["expert_scale"].astype(jnp.float32)[ids_BTX]
    if router.scalar:
        weight_BTX = weight_BTX * dense(params["router_scalar"]).astype(jnp.float32).reshape(1, 1, 1)
    return ids_BTX, weight_BTX * router.scale


def open_groups(router: Router, choice_BTE: Array) -> Array:
    """The scores, with those of experts outside the best groups replaced."""
    count, kept = router.groups
    if kept == count:
        return choice_BTE
    grouped = choice_BTE.reshape(*choice_BTE.shape[:-1], count, -1)
    merit_BTG = jax.lax.top_k(grouped, router.group_top)[0].sum(-1)
    _, best_BTg = jax.lax.top_k(merit_BTG, kept)
    is_open_BTG = jax.nn.one_hot(best_BTg, count, dtype=bool).any(-2)
    return jnp.where(is_open_BTG[..., None], grouped, router.closed).reshape(choice_BTE.shape)


def sparsemixer(router: Router, logits_BTE: Array) -> tuple[Array, Array]:
    """One expert after another: each weighs as much as in a softmax over its rivals, those near enough to the best."""
    ids, weights, open_BTE = [], [], logits_BTE
    for _ in range(router.top_k):
        top = open_BTE.max(-1, keepdims=True)
        # the distance to the best is measured against the logits as they were given
        near = (top - logits_BTE) / jnp.maximum(jnp.abs(logits_BTE), top) <= 2 * router.jitter
        rivals = jax.nn.softmax(jnp.where(near, open_BTE, -jnp.inf))
        best = open_BTE.argmax(-1, keepdims=True)
        ids.append(best)
        weights.append(jnp.take_along_axis(rivals, best, -1))
        chosen = jax.nn.one_hot(best[..., 0], logits_BTE.shape[-1], dtype=bool)
        open_BTE = jnp.where(chosen, -jnp.inf, open_BTE)
    return jnp.concatenate(ids, -1).astype(jnp.int32), jnp.concatenate(weights, -1) * router.scale
