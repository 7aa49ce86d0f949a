"""Experts that live on different devices: tokens travel to the experts that they chose, and back.

Every device holds whole experts and takes its share of the tokens. Two all-to-alls, with room for the case that all
tokens choose the experts of one device: no token is ever dropped.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

Local = Callable[[Array, Array, Array], Array]
"""(x_ND, ids_NX, weight_NX) -> y_ND with this device's experts, whose ids begin at 0; an id past the last is none."""


def dispatched(local: Local, x_ND: Array, ids_NX: Array, weight_NX: Array, experts: int, axis: str) -> Array:
    """The weighted sum of the chosen experts, for tokens that every device of `axis` holds: y_ND on every device.

    experts: how many a device has. Ids past the last expert of the last device stand for none.
    """
    devices, n = jax.lax.axis_size(axis), x_ND.shape[0]
    share = -(-n // devices)  # the last device's share is filled up with rows that choose none
    fill = share * devices - n
    none = experts * devices
    mine = lambda rows, value=0: jax.lax.dynamic_slice_in_dim(  # noqa: E731
        jnp.pad(rows, ((0, fill), (0, 0)), constant_values=value), jax.lax.axis_index(axis) * share, share
    )
    y_nD = travelled(local, mine(x_ND), mine(ids_NX, none), mine(weight_NX), experts, axis)
    return jax.lax.all_gather(y_nD, axis, axis=0, tiled=True, to="invarying")[:n]


def travelled(local: Local, x_ND: Array, ids_NX: Array, weight_NX: Array, experts: int, axis: str) -> Array:
    """The same for tokens that are split over the axis already: each device gives and gets its own."""
    devices, (n, x) = jax.lax.axis_size(axis), ids_NX.shape
    rows, ids_R = n * x, ids_NX.reshape(-1)
    to_R = ids_R // experts  # the device that has the expert; past the last one: it stays at home
    # the place of a row among those that go to the same device
    going_RP = (to_R[:, None] == jnp.arange(devices)[None]).astype(jnp.int32)
    rank_R = (jnp.cumsum(going_RP, 0) * going_RP).sum(1) - 1
    place_R = jnp.where(to_R < devices, to_R * rows + rank_R, devices * rows)

    def pack(values: Array, fill: int) -> Array:
        empty = jnp.full((devices * rows, values.shape[1]), fill, values.dtype)
        return empty.at[place_R].set(values, mode="drop").reshape(devices, rows, -1)

    def exchange(packed: Array) -> Array:
        return jax.lax.all_to_all(packed, axis, split_axis=0, concat_axis=0).reshape(devices * rows, -1)

    x_RD = jnp.repeat(x_ND, x, axis=0)
    ids = exchange(pack((ids_R % experts)[:, None], experts))
    y = local(exchange(pack(x_RD, 0)), ids, exchange(pack(weight_NX.reshape(-1, 1), 0)))
    back = exchange(y.reshape(devices, rows, -1))
    y_RD = back.at[place_R].get(mode="fill", fill_value=0)
    return y_RD.reshape(n, x, -1).sum(1)
