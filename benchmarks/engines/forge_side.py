"""forge-jax as an engine: weights in a dtype, by a scheme of `quantize`, or packed as the file has them ("stored", and
with choices of kernels "exact" and "rounded")."""

from collections.abc import Sequence
from typing import Any

from protocol import serve


class Forge:
    """forge-jax under measurement."""

    def __init__(self, forge: Any, path: str, weights: str) -> None:
        self.forge = forge
        match weights:
            case "float32" | "bfloat16" | "float16":
                self.model = forge.load(path, dtype=weights, packed=False, progress=False).model
            case "stored":
                self.model = forge.load(path, progress=False).model
            case "exact" | "rounded":
                self.model = forge.load(path, kernels=weights, progress=False).model
            case _:
                whole = forge.load(path, dtype="float32", packed=False, progress=False).model
                self.model = forge.quantize(whole, weights, outside=weights)

    def begin(self, rows: Sequence[Sequence[int]], room: int) -> list[int]:
        """A session; it reads the prompts."""
        self.session = self.forge.Session(self.model.spec, self.model.params, rows, max_new_tokens=room)
        return [row[0] for row in self.session.ids()]

    def go_on(self, count: int) -> None:
        """Its tokens."""
        self.session.advance(count)
        self.session.ids()

    def facts(self) -> dict[str, Any]:
        """Bytes of the leaves; the embedding counts where it is the head too."""
        from jax.tree_util import tree_leaves

        spec, params = self.model.spec, self.model.params
        read = {key: value for key, value in params.items() if key != "embed" or spec.tied}
        layers = self.session.state.cache.layers
        size = self.session.state.history.tokens_BS.size
        kept = sum(leaf.nbytes for leaf in tree_leaves(layers))
        return {"weights": sum(leaf.nbytes for leaf in tree_leaves(read)), "cache": kept / size}


def imports() -> Any:
    """The library as a user imports it, with what `load` needs."""
    import forge_jax

    _ = forge_jax.load, forge_jax.Session  # imported when they are first named
    return forge_jax


if __name__ == "__main__":
    serve(("jax", "jaxlib"), imports, Forge)
