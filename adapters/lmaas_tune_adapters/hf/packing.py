"""Linear layers of a float32 model on a processor, with weights laid out once for oneDNN.

The default kernel lays the weights out anew in every call, which costs most for the small passes
that are left once work is shared. The numbers are the same to float32's rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

_ROWS = 512  # of a typical pass: the layout is chosen for about so many


class PackedLinear(torch.nn.Module):
    """x W^T + b, with W as oneDNN wants it.

    Args:
        weight: (out, in) float32.
        bias: (out,), or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = weight.new_empty(0)  # some models look at the dtype of a layer's weight
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
        self._bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        image: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return image


def pack_linear_layers(network: Any) -> None:
    """Pack every linear layer in place, where this build of torch can; else change nothing."""
    if network.device.type != "cpu" or network.dtype != torch.float32:
        return
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    with torch.inference_mode(False), torch.no_grad():
        for parent in list(network.modules()):
            for name, layer in list(parent.named_children()):
                if type(layer) is torch.nn.Linear:
                    weight = layer.weight
                elif type(layer) is Conv1D:  # GPT-2's: the same with its weight on its side
                    weight = layer.weight.T
                else:
                    continue
                try:
                    setattr(parent, name, PackedLinear(weight.detach(), layer.bias))
                except (AttributeError, RuntimeError):  # internal to torch: it may go
                    return
