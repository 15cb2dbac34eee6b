"""Linear layers through oneDNN, on the CPU.

torch sends float32 matrix products to MKL, which on some processors (AMD's, for one) runs at less than half
of what they can do; oneDNN, which torch carries for its convolutions, does not. The numbers are the same
within float32's rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def use_onednn(model: torch.nn.Module) -> None:
    """Replace every linear layer of a float32 model on the CPU by one that oneDNN computes, in place.

    The weights stay the same tensors under the same names. Where this torch has no such operator, nothing
    changes.
    """
    import torch

    product = _product()
    if product is None:
        return

    class OneDnnLinear(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.weight, self.bias = linear.weight, linear.bias
            self.in_features, self.out_features = linear.in_features, linear.out_features

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return product(inputs, self.weight, self.bias)  # type: ignore[no-any-return]

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, OneDnnLinear(child))


def _product() -> Any:
    """`inputs @ weight.T + bias` by oneDNN, or `None`. The operator is the one that torch.compile emits."""
    import torch

    operator: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None or not torch._C._has_mkldnn:
        return None

    def product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if weight.dtype != torch.float32:  # oneDNN has other types only on some processors
            return torch.nn.functional.linear(inputs, weight, bias)
        return operator(inputs, weight, bias, "none", [], "")  # type: ignore[no-any-return]

    return product
