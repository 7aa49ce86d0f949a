"""auto-round: integers packed as another format packs them, which `packing_format` names.

Modules of `extra_config` have bits or groups of their own, by their names or by expressions. A group of AWQ's layout,
and GPTQ's with zeros stored less one ("auto_round:auto_gptq") or as they are, are described where these formats are.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from converters.packed import awq, gptq
from converters.packed.weight import Stored, Weight
from converters.take import Take

PACKINGS = {
    "auto_round": "gptq_v2",
    "auto_round:auto_awq": "awq",
    "auto_round:auto_gptq": "gptq",
    "auto_round:gptqmodel": "gptq_v2",
}
# how the numbers were found
QUIET = """
    act_bits act_data_type act_dynamic act_group_size act_sym amp autoround_version batch_size block_name_to_quantize
    data_type enable_minmax_tuning enable_norm_bias_tuning enable_quanted_input enable_torch_compile
    gradient_accumulate_steps iters low_gpu_mem_usage lr minmax_lr nsamples quant_block_list seqlen super_bits
    super_group_size sym to_quant_block_names
""".split()


def weights(take: Take, stored: Stored) -> Iterator[Weight]:
    """The quantised modules of a checkpoint: those that have a `qweight`.

    Raises:
        ValueError: a packing that is not known, activations in few bits, or parts that do not fit.
    """
    packing = take("packing_format", "auto_round:auto_gptq")
    if not isinstance(packing, str) or packing not in PACKINGS:
        raise ValueError(f"{take.where}: packing_format = {packing!r} is not implemented; expected {[*PACKINGS]}")
    if take("data_type", "int") != "int":
        raise ValueError(f"{take.where}: data_type = {take('data_type')!r} is not implemented; expected 'int'")
    own = take("extra_config", {})
    if not isinstance(own, Mapping) or not all(isinstance(one, Mapping) for one in own.values()):
        raise ValueError(f"{take.where}: extra_config is not a dict of dicts")
    take.ignore(*QUIET)
    method = PACKINGS[packing]
    said = {"bits": take("bits", 4), "group_size": take("group_size", 128), "dynamic": overrides(own)}
    if method != "awq":
        said["checkpoint_format"] = method
    inner = Take(said, take.where)
    yield from (awq if method == "awq" else gptq).weights(inner, stored)


def overrides(own: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """extra_config as GPTQ's `dynamic`; what has 16 bits or more is plain."""
    out = {}
    for name, settings in own.items():
        pattern = name if re.escape(name) != name and any(c in name for c in "*[(\\^$") else re.escape(name) + "$"
        kept = {key: settings[key] for key in ("bits", "group_size") if settings.get(key) is not None}
        plain = isinstance(kept.get("bits"), int) and kept["bits"] >= 16
        out |= {f"-:{pattern}": {}} if plain else {pattern: kept}
    return out
