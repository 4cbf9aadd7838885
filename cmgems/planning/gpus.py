"""The GPU kinds that a plan can be made for."""

from pathlib import Path

import yaml

from cmgems.errors import UserError
from cmgems.settings import Settings

GPUS = Path(__file__).parent / "gpus.yaml"


class Tflops(Settings):
    """Peak 10^12 floating-point operations a second of dense matrix products, by `training.precision`."""

    bf16: float | None
    """None: the kind has no bf16."""
    fp16: float
    """Tensor cores, sums in 32 bit."""
    fp32: float
    """Without tensor cores."""


class GpuKind(Settings):
    """What a plan takes from a GPU's datasheet."""

    memory_gb: float
    """Memory, GB of 10^9 bytes."""
    tflops: Tflops
    """Peak performance."""
    memory_bandwidth_gbs: float
    """GB a second."""
    interconnect: str
    """The fastest way to another GPU of the machine."""
    interconnect_gbs: float
    """Its bandwidth, both directions together, GB a second."""
    source: str
    """Document that all of this is from."""


def gpu_kinds() -> dict[str, GpuKind]:
    """Return all known kinds by name."""
    return {name: GpuKind(**values) for name, values in yaml.safe_load(GPUS.read_text()).items()}


def find_gpu(name: str) -> tuple[str, GpuKind]:
    """Return the name and data of a kind, asked for in upper or lower case.

    Raises
    ------
    UserError
        If there is no such kind; the message lists those that are known.
    """
    kinds = gpu_kinds()
    for known, kind in kinds.items():
        if known.lower() == name.lower():
            return known, kind
    raise UserError(f"--gpu {name}: not a known kind. Known: {', '.join(kinds)}")
