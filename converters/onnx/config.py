"""The config of an ONNX model: config.json beside the graph or above its folder, or else what GenAI's file and the
graph say together (`converters.onnx.genai_config`).
"""

from pathlib import Path
from typing import Any

from converters.checkpoint import read_config
from converters.onnx.genai_config import from_genai
from converters.onnx.source import OnnxSource

GENAI = "genai_config.json"
FOLDER = "onnx"  # where a repository keeps its graphs, below its config.json


def config_of(path: Path, source: OnnxSource) -> dict[str, Any]:
    """The config of an opened graph.

    Raises:
        FileNotFoundError: there is none, and no genai_config.json.
        ValueError: genai_config.json and the graph do not say enough.
    """
    folder = source.store.path.parent
    if (folder / "config.json").is_file():
        return read_config(path, source)
    if folder.name == FOLDER and (folder.parent / "config.json").is_file():
        return read_config(folder.parent, source)
    if (folder / GENAI).is_file():
        return from_genai(folder / GENAI, source.graph)
    return read_config(path, source)
