"""A loaded model with its weights in fewer bits. Part of the front; `forge_jax.quantization` does the work."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from forge_jax.loading import Model
from forge_jax.quantization import quantize as quantize_params


def quantize(
    model: Model,
    scheme: str,
    *,
    policy: Mapping[str, str | None] | None = None,
    outside: str | None = "int8",
    importance: Mapping[str, np.ndarray] | None = None,
    fallback: str | None = None,
    requantize: bool = False,
) -> Model:
    """The model with packed weights, which it computes with; the given one stays as it is.

    Args: as `forge_jax.quantization.quantize`; the names of schemes are in `forge_jax.quantization.packers`.

    Raises:
        ValueError: as there, or the model is split over a mesh.
    """
    if model.mesh is not None:
        raise ValueError(
            "quantize: the model is split over a mesh; load it without one, quantise it and split its parameters then "
            "(forge_jax.parallel.shard)"
        )
    params = quantize_params(
        model.spec,
        model.params,
        scheme,
        policy=policy,
        outside=outside,
        importance=importance,
        fallback=fallback,
        requantize=requantize,
    )
    return replace(model, params=params, packing=None)
