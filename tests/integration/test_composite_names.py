"""The language model inside composites as transformers saves them: every tensor has its place, and the text logits."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import read_golden, token_ids, weight
from oracle_loader import load as load_oracle

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("quick_compiles")]

VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4}
CONVOLVED = {"embed_dim": 32, "base_channels": 32, "latent_channels": 32, "codebook_size": 16, "num_res_blocks": 1}
# besides text_config: towers as small as they go, and ids of the vocabulary that stand for what they give
COMPOSITES: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        "vision_config": CONVOLVED | {"channel_multiplier": [1, 1], "attn_resolutions": []},
        "audio_config": {
            "model_type": "wavtokenizer_encoder",
            "codebook_size": 16,
            "hidden_size": 32,
            "codebook_dim": 32,
            "num_filters": 4,
        },
        "image_token_id": 98,
        "audio_token_id": 99,
        "image_token_offset": 100,
        "audio_token_offset": 116,
    },
    "dots3_note": {
        "vision_config": VISION
        | {
            "mlp_layer_types": ["sparse"],
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 8,
            "adapter_in_dim": 32,
            "adapter_out_dim": 48,
        },
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "feature_size": 8,
            "downsample_hidden_size": 8,
            "adapter_input_size": 32,
            "adapter_out_dim": 48,
        },
        "image_token_id": 150,
        "video_token_id": 151,
        "audio_token_id": 152,
    },
    "emu3": {
        "vq_config": CONVOLVED | {"channel_multiplier": [1, 1], "attn_resolutions": [], "hidden_size": 32},
        "vocabulary_map": {"<image>": 150},
    },
    "fuyu": {"patch_size": 4, "num_channels": 1, "image_token_id": 150},
    "got_ocr2": {
        "vision_config": VISION | {"output_channels": 8, "image_size": 16, "global_attn_indexes": [0], "mlp_dim": 32},
        "image_token_index": 150,
    },
    "inkling2": {
        "vision_config": VISION | {"posemb_grid_size": 4, "projection_hidden_dim": 32, "text_hidden_size": 64},
        "image_token_id": 150,
    },
    "inkling2_loop": {
        "vision_config": VISION | {"posemb_grid_size": 4, "projection_hidden_dim": 32, "text_hidden_size": 64},
        "image_token_id": 150,
    },
    "inkling_mm_model": {
        "vision_config": {"hidden_size": 32, "n_layers": 1, "num_attention_heads": 2, "text_hidden_size": 64},
        "audio_config": {"n_mel_bins": 8, "mel_vocab_size": 16, "text_hidden_size": 64},
        "image_token_id": 150,
        "audio_token_id": 151,
    },
    "minimax_m3_vl": {"vision_config": VISION | {"image_size": 28}, "image_token_id": 150, "video_token_id": 151},
    "phi4_multimodal": {
        "vision_config": VISION | {"image_size": 16, "crop_size": 16},
        "audio_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 32,
            "input_size": 8,
            "nemo_conv_channels": 32,
            "nemo_final_size": 32,
            "bias_max_distance": 8,
        },
    },
    "qwen4_exp": {
        "vision_config": {
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "num_position_embeddings": 16,
            "out_hidden_size": 64,
        },
        "image_token_id": 150,
        "video_token_id": 151,
    },
}
TEXT = {
    "emu3": "emu3_text_model",
    "fuyu": "persimmon",
    "got_ocr2": "qwen2",
    "inkling_mm_model": "inkling_text",
    "phi4_multimodal": "phi3",
}
FLAT = {"phi4_multimodal"}  # what is said of text stands beside the configs of the towers
IDS = token_ids(vocabulary=98)  # none that stands for what a tower gives


def save(folder: Path, kind: str, text: dict[str, Any]) -> np.ndarray:
    """Write the checkpoint that the reference saves of such a model, with our weights; its text logits [B, T, V]."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    whole = transformers.AutoModelForCausalLM if kind in FLAT else transformers.AutoModelForImageTextToText
    said = {key: value for key, value in text.items() if key != "model_type"} if kind in FLAT else {"text_config": text}
    (folder / "config.json").write_text(json.dumps(said | {"model_type": kind} | COMPOSITES[kind]))
    whole.from_config(transformers.AutoConfig.from_pretrained(folder), dtype=torch.float32).save_pretrained(folder)
    stored = {
        name: torch.from_numpy(weight(name, tuple(values.shape))) if values.is_floating_point() else values
        for name, values in load_file(folder / "model.safetensors").items()
    }
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    model = whole.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(IDS).long(), use_cache=False).logits.numpy()


@pytest.mark.parametrize("kind", COMPOSITES)
def test_text_logits_of_a_saved_composite(tmp_path: Path, kind: str) -> None:
    text = read_golden(TEXT.get(kind, f"{kind}_text")).config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that it imports, and that towers are left out
        expected = save(tmp_path, kind, text)
        found = load_oracle(tmp_path)(IDS)
    expected = expected[..., : found.shape[-1]]  # of ids that have no output, the reference gives minus infinity
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))
