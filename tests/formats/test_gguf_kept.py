"""GGUF files written as the model is: ggml's blocks byte for byte, and what cannot be is refused."""

from pathlib import Path

import pytest

from converters.gguf import open_gguf
from converters.gguf.mix_table import MIXES
from forge_jax import loading
from forge_jax.exporting import export_gguf


@pytest.mark.parametrize(
    "case",
    ["llama/Q4_K_M", "llama/IQ3_S", "llama/TQ2_0", "llama/BF16", "gemma2/Q4_K_M", "mixtral/Q4_K_M", "gpt2/Q4_K_M"],
)
def test_blocks_are_written_byte_for_byte(shared: Path, tmp_path: Path, case: str):
    """Load, save, load: every tensor of the file again, whatever mix it was made with."""
    path = shared / f"oracle/gguf/{case}.gguf"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    model = loading.load(path, dtype="stored", progress=False)
    one, two = open_gguf(path), open_gguf(export_gguf(model, tmp_path / "again.gguf", type="stored"))
    try:
        assert {n: (i.shape, i.dtype) for n, i in two.tensors.items()} == {
            n: (i.shape, i.dtype) for n, i in one.tensors.items()
        }
        for name in one.tensors:
            assert one.raw(name).tobytes() == two.raw(name).tobytes(), name
        assert two.metadata["general.file_type"] in {mix.id for mix in MIXES.values()}
    finally:
        one.close()
        two.close()


def test_other_packings_are_refused_as_they_are(shared: Path, tmp_path: Path):
    path = shared / "oracle/quant/awq_g32"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    model = loading.load(path, progress=False)
    with pytest.raises(ValueError, match="int4-g32 cannot be stored as it is; choose a type of GGUF"):
        export_gguf(model, tmp_path / "a.gguf", type="stored")
    assert not list(tmp_path.iterdir())
