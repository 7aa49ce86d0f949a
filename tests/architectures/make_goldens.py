"""Makes the goldens from transformers, in float32 with eager attention. Run by hand, with torch installed:

python tests/architectures/make_goldens.py [name ...]
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, Emu3ForCausalLM
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import GOLDENS, TOKENS, VOCABULARY, Golden, token_ids, weight, write_golden
from hub_models import HUB, witnessed
from variants import VARIANTS

CLASSES = {"emu3_text_model": Emu3ForCausalLM}  # the automatic choice knows only the composite
# buffers that checkpoints hold, although they follow from the config: they stay as they are
FIXED = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")


def filled(saved: torch.Tensor, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Our weights in the place of a saved tensor, unless a config says what it holds, as it does of whole numbers."""
    whole = not saved.is_floating_point() and not key.endswith("tid2eid")  # a table of experts, which is learned
    return saved if whole or key.endswith(FIXED) else torch.from_numpy(weight(key, shape))


def published(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of convolutions over projections, which transformers joins on reading and saves as equal thirds."""
    mine = {key: key.replace("_conv1d.", "_proj.") for key in shapes if "_conv1d." in key}
    return {key: (shapes[over][0], *shapes[key][1:]) for key, over in mine.items() if over in shapes}


def reference(name: str, config: dict[str, Any]) -> Golden:
    """Build the model that a config.json describes, fill it with our weights and run it; of the hub's, the witness.

    It is saved and loaded once, because only a saved checkpoint has the names that files have.
    """
    if config["model_type"] in HUB:
        return witnessed(name, config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "config.json").write_text(json.dumps(config))
        parsed = AutoConfig.from_pretrained(folder)
        class_: Any = CLASSES.get(config["model_type"], AutoModelForCausalLM)
        build = class_.from_config if class_ is AutoModelForCausalLM else class_._from_config
        build(parsed, dtype=torch.float32).save_pretrained(folder)
        file = path / "model.safetensors"
        with safe_open(file, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        shapes |= published(shapes)
        stored = {key: filled(tensors[key], key, shape) for key, shape in shapes.items()}
        save_file(stored, file, {"format": "pt"})
        (path / "config.json").write_text(json.dumps(config))
        # the eager path of falcon adds ALiBi twice, in the mask and to the scores; its default does not
        attention = "sdpa" if config.get("alibi") else "eager"
        model = class_.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()
    with torch.no_grad():  # zaya overwrites one that it has loaded, see notes.md
        for key, buffer in model.named_buffers():
            if key in stored:
                buffer.copy_(stored[key])
    tokens = token_ids()
    logits = (one_by_one if config.get("is_moe") else together)(model, torch.from_numpy(tokens).long())
    return Golden(name, config, shapes, tokens, np.ascontiguousarray(logits[:, list(TOKENS), VOCABULARY]))


@torch.no_grad()
def together(model: Any, tokens: torch.Tensor) -> np.ndarray:
    """The logits of whole rows."""
    return model(tokens, use_cache=False).logits.float().numpy()


@torch.no_grad()
def one_by_one(model: Any, tokens: torch.Tensor) -> np.ndarray:
    """The logits token by token, row by row: the router of doge confuses the tokens of one call, see notes.md."""
    rows = []
    for row in tokens:
        cache, found = DynamicCache(config=model.config), []
        for token in row:
            found.append(model(token[None, None], cache=cache, use_cache=True).logits[0, 0].float())
        rows.append(torch.stack(found))
    return torch.stack(rows).numpy()


def main() -> None:
    """Write the goldens that are named, or all of them, and remove those whose variant is gone."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in sys.argv[1:] or VARIANTS:
        golden = reference(name, VARIANTS[name])
        path = write_golden(golden)
        print(f"{path.stat().st_size:6d} bytes  max |logit| {np.abs(golden.logits).max():8.3f}  {name}", flush=True)
    for path in GOLDENS.glob("*.npz"):
        if path.stem not in VARIANTS:
            path.unlink()


if __name__ == "__main__":
    main()
