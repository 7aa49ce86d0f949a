"""Keeping the experts of a mixture busy: two losses with gradients, and a rule without.

What the routers did is recorded in a cache that holds nothing else, one entry a mixture:

    logits, cache = forward(spec, params, inputs, routing(spec))
    loss = cross_entropy(...) + 0.01 * balance_loss(spec, cache) + 0.001 * z_loss(spec, cache)
"""

from collections.abc import Iterator

import jax.numpy as jnp
from jax import Array

from forge_jax.cache import Cache
from forge_jax.ops.router import Routing, nothing_routed
from forge_jax.params import Tree
from forge_jax.spec import ModelSpec, Moe


def mixtures(spec: ModelSpec) -> Iterator[tuple[int, str, Moe]]:
    """(layer, branch, op) of every mixture of experts."""
    for i, block in enumerate(spec.layers):
        for branch in block.every():
            if isinstance(branch.op, Moe):
                yield i, branch.name, branch.op


def routing(spec: ModelSpec) -> Cache:
    """An empty record of what the routers of a model do; hand it to `forward` as its cache.

    Raises:
        ValueError: the model has no mixture of experts.
    """
    layers = tuple({} for _ in spec.layers)
    for i, branch, op in mixtures(spec):
        layers[i][branch] = nothing_routed(op.choices)
    if not any(layers):
        raise ValueError("routing: the model has no mixture of experts, so there is nothing to balance")
    return Cache({}, layers)


def records(spec: ModelSpec, cache: Cache) -> list[tuple[Moe, Routing]]:
    """Each mixture with its record."""
    return [(op, cache.layers[i][branch]) for i, branch, op in mixtures(spec)]  # type: ignore[misc]


def balance_loss(spec: ModelSpec, cache: Cache) -> Array:
    """Switch's loss (arXiv:2101.03961, eq. 4) for any number of chosen experts, the mean over the mixtures.

    E * sum_e f_e P_e: f_e is how many of its choices a token gives to expert e on average, P_e the mean probability.
    The number chosen is its least value, reached by perfect balance. Only P has a gradient. Padding does not count.
    """
    losses = []
    for _, record in records(spec, cache):
        tokens = jnp.maximum(record.tokens, 1)
        share_E, probability_E = record.chosen_E / tokens, record.probability_E / tokens
        losses.append(share_E.shape[0] * (share_E * probability_E).sum())
    return jnp.stack(losses).mean()


def z_loss(spec: ModelSpec, cache: Cache) -> Array:
    """The mean square of the routers' logsumexp (arXiv:2202.08906, eq. 5): keeps their logits small."""
    return jnp.stack([record.square / jnp.maximum(record.tokens, 1) for _, record in records(spec, cache)]).mean()


def balanced(spec: ModelSpec, params: Tree, cache: Cache, rate: float = 1e-3) -> Tree:
    """The parameters with every choice bias moved by `rate` towards balance (arXiv:2408.15664): no gradient is needed.

    An expert with more than the mean load becomes less likely to be chosen; its weight once chosen stays as it was.

    Raises:
        ValueError: no router of the model has a choice bias.
    """
    if not any(op.router.choice_bias for _, _, op in mixtures(spec)):
        raise ValueError("balanced: no router has a choice bias; use balance_loss instead")
    layers = dict(params["layers"])
    for i, branch, op in mixtures(spec):
        if not op.router.choice_bias:
            continue
        chosen_E = cache.layers[i][branch].chosen_E  # type: ignore[union-attr]
        entry = layers[str(i)][branch]
        bias_E = entry["choice_bias"]
        step_E = rate * jnp.sign(chosen_E.mean() - chosen_E)
        moved = entry | {"choice_bias": bias_E + step_E.astype(bias_E.dtype)}
        layers[str(i)] = layers[str(i)] | {branch: moved}
    return params | {"layers": layers}
