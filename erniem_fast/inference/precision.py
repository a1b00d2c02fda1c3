"""The dtype that a device computes fastest in."""

import torch


def auto_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has matrix units for it, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32
