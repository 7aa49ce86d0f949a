"""What the tables of `archs_hub` leave open."""

from collections.abc import Callable, Mapping

from converters.gguf.extras_common import Config, hunyuan
from converters.gguf.reading import Reading


def axes(reading: Reading, config: Config) -> Config:
    """How features share out the axes of a picture, and which layers see it: no matter for text, whose axes are one.

    Raises:
        ValueError: the sections are no four counts.
    """
    given = reading.take("rope.dimension_sections", None)
    counts = [0] * 4 if given is None else given
    if not isinstance(counts, list) or len(counts) != 4 or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError(f"{reading.take.where}: rope.dimension_sections is {given!r}, expected four counts")
    reading.count("n_deepstack_layers", 0, least=0)
    return {}


def hunyuan_vl(reading: Reading, config: Config) -> Config:
    """The base is stored as it was before it was stretched by alpha."""
    axes(reading, config)
    alpha, size, rope = reading.number("rope.scaling.alpha", 0.0), config["head_dim"], config["rope_parameters"]
    base = rope["rope_theta"] * (alpha or 1.0) ** (size / (size - 2))
    return hunyuan(reading, config) | {"rope_parameters": rope | {"rope_theta": base}}


HUB: Mapping[str, Callable[[Reading, Config], Config]] = {
    "qwen2vl": axes,
    "qwen3vl": axes,
    "qwen3vlmoe": axes,
    "paddleocr": axes,
    "hunyuan_vl": hunyuan_vl,
}
