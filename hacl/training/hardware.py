"""Peak arithmetic of accelerators, for utilisation: dense bf16 operations per second, as the vendors publish them.

Sources: the data sheets of A100, H100, H200, L4, L40 and L40S (nvidia.com/en-us/data-center/<name>), A10 and A30
(nvidia.com/en-us/data-center/products), the whitepapers of the GA102 and Ada architectures (GeForce and RTX A6000), the
Blackwell data sheet (B200, GB200), and amd.com/en/products/accelerators/instinct (MI250X for each of its two dies,
MI300X, MI325X). Sheets that give numbers with sparsity are halved.
"""

from __future__ import annotations

import torch

# The first name that occurs in the device's wins. TFLOP/s.
PEAKS = (
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("GH200", 989.0),
    ("H200 NVL", 835.0),
    ("H200", 989.0),
    ("H100 NVL", 835.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("H800 PCIe", 756.0),
    ("H800", 989.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A30", 165.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX A6000", 154.8),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("MI325X", 1307.0),
    ("MI300X", 1307.0),
    ("MI250X", 191.5),
)


def known_peak(name: str) -> float | None:
    """Dense bf16 TFLOP/s of a device by the name its driver gives, or None for one that is not in the table."""
    words = name.replace("-", " ").split()
    if "Laptop" in words:  # a smaller chip under the name of the card
        return None
    return next((peak for known, peak in PEAKS if _in_order(known.split(), words)), None)


def _in_order(parts: list[str], words: list[str]) -> bool:
    """Whether the words of a known name occur in a device's in their order, as in "H100 80GB PCIe"."""
    rest = iter(words)
    return all(part in rest for part in parts)


def peak_tflops(given: float | None, *, bf16: bool) -> float | None:
    """TFLOP/s that utilisation is a share of: what the user gives, or that of this rank's GPU in bf16.

    None, and then no utilisation is reported, for an unknown GPU, on a CPU, and in fp32 (whose peak depends on whether
    TF32 is on).
    """
    if given is not None:
        return given
    if not (bf16 and torch.cuda.is_available()):
        return None
    return known_peak(torch.cuda.get_device_name())
