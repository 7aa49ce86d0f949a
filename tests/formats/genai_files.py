"""Files of ONNX Runtime GenAI's model builder: made where it is installed, and kept as graphs without their weights.

`python tests/formats/genai_files.py`, in an environment with onnxruntime-genai, writes `goldens/genai_graphs.zip`.
"""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import tokenizers
from helpers import read_golden
from onnx_files import angles
from safetensors.numpy import save_file
from tokenizers import models

GRAPHS = Path(__file__).parent / "goldens" / "genai_graphs.zip"
KINDS = (
    *("ernie4_5", "ernie4_5_bias_untied", "gemma", "gemma_untied_bias", "gemma2", "gemma2_no_caps", "granite"),
    *("granite_bias_tied", "hunyuan_v1_dense", "lfm2", "llama_bias", "mistral_no_window", "phi3", "phi3_partial"),
    *("qwen2", "qwen3", "qwen3_bias_tied"),
)
CONFIGURED = ("lfm2_moe", "gpt_oss_bare")
"""Kinds that are read with their config.json: mixtures. The tables of the second are large, and it is not kept."""
ENDS = {"bos_token_id": 1, "eos_token_id": 2}


def build(name: str, folder: Path) -> None:
    """Write a golden as a checkpoint, and beside it what the builder makes of it, in folder/out."""
    from onnxruntime_genai.models import builder  # type: ignore[import-not-found]
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    golden, source = read_golden(name), folder / "source"
    source.mkdir()
    kind = golden.config["model_type"]
    config = golden.config | ENDS | {"architectures": [CLASSES[kind]]}
    if kind == "phi3":
        config["original_max_position_embeddings"] = config["max_position_embeddings"]
    save_file(golden.arrays, source / "model.safetensors")
    tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2}, [])).save(str(source / "tokenizer.json"))
    written = {"config": config, "generation_config": ENDS, "tokenizer_config": {"eos_token": "c"}}
    for file, content in written.items():
        (source / f"{file}.json").write_text(json.dumps(content))
    where = str(source), str(source), str(folder / "out"), "fp32", "cpu", str(folder / "cache")
    builder.create_model(*where, **builder.parse_extra_options(*where, None))


def keep(name: str, folder: Path, archive: zipfile.ZipFile) -> None:
    """Add what the builder wrote to the archive: its config, and the graph without shapes and weights."""
    model = onnx.load(folder / "out" / "model.onnx", load_external_data=False)
    del model.graph.value_info[:]
    archive.writestr(f"{name}.onnx", model.SerializeToString())
    archive.writestr(f"{name}.json", (folder / "out" / "genai_config.json").read_bytes())


def unpack(name: str, folder: Path) -> None:
    """Write a kept graph as a directory: weights are zeros, and the tables of the rope as the golden's config says."""
    with zipfile.ZipFile(GRAPHS) as archive:
        (folder / "model.onnx").write_bytes(archive.read(f"{name}.onnx"))
        (folder / "genai_config.json").write_bytes(archive.read(f"{name}.json"))
    config, data = read_golden(name).config, {}
    if name in CONFIGURED:
        (folder / "config.json").write_text(json.dumps(config))
    for tensor in onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        values = np.zeros(tuple(tensor.dims), np.float32)
        if tensor.name in ("cos_cache", "sin_cache"):
            angle = angles(config | {"head_dim": 2 * tensor.dims[1]}, tensor.dims[0])
            values = (np.cos if tensor.name == "cos_cache" else np.sin)(angle).astype(np.float32)
        data[int(place["offset"])] = values
    with (folder / "model.onnx.data").open("wb") as file:
        for offset, values in sorted(data.items()):
            file.seek(offset)
            file.write(values.tobytes())


if __name__ == "__main__":
    if len(sys.argv) == 3:
        build(sys.argv[1], Path(sys.argv[2]))
    else:
        import tempfile

        with zipfile.ZipFile(GRAPHS, "w", zipfile.ZIP_DEFLATED) as kept:
            for each in (*KINDS, *CONFIGURED[:1]):
                with tempfile.TemporaryDirectory() as made:
                    build(each, Path(made))
                    keep(each, Path(made), kept)
