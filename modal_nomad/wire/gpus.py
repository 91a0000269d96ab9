"""Names of GPU models and of Nomad's devices, as users say them and as NVIDIA's driver reports them."""

# Whole cards, as every plugin for NVIDIA's cards names them, and parts of one, as ours does.
WHOLE = "nvidia/gpu"
SLICE = "nvidia/gpu-slice"

# The driver says "NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe", "Tesla T4", "NVIDIA L4", "NVIDIA L40S".
_SIZED = {"A100-40GB": "A100.*40GB", "A100-80GB": "A100.*80GB"}


def model_pattern(model: str) -> str:
    """Return the regular expression (RE2 and Python alike) that finds a model in a driver's product name.

    Example:
        >>> import re
        >>> bool(re.search(model_pattern("L4"), "NVIDIA L40S"))
        False
        >>> bool(re.search(model_pattern("A100-80GB"), "NVIDIA A100-SXM4-80GB"))
        True
    """
    return rf"\b{_SIZED.get(model, model)}\b"
