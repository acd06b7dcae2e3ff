"""What PyTorch computes: the loss and the gradients of a module, in float32 and, as the reference, in float64."""
import copy

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class InDouble(TorchFunctionMode):
    """Makes every request for float32 one for float64, so that stock code with float32 islands runs in float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        lift = lambda x: torch.float64 if x is torch.float32 else x
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        kwargs = {key: lift(value) for key, value in (kwargs or {}).items()}
        if func in (F.rms_norm, torch.rms_norm) and len(args) < 4 and kwargs.get("eps") is None:
            kwargs["eps"] = torch.finfo(torch.float32).eps  # the default is the element type's
        return func(*map(lift, args), **kwargs)


def loss_and_gradients(module, data):
    """The loss and {FQN: gradient} of the parameters that are not frozen; a tied parameter under its first name."""
    module.zero_grad(set_to_none=True)
    loss = module(**data)
    loss.backward()
    return loss.detach(), {name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                           for name, p in module.named_parameters() if p.requires_grad}


def in_float64(module, data):
    """The same in float64, from the float32 weights and buffers."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # factories without a dtype: positions, masks
    try:
        with InDouble():
            return loss_and_gradients(copy.deepcopy(module).double(), data)
    finally:
        torch.set_default_dtype(default)


def worst(gradients, reference):
    """The number contract's measure |a - b| / max(|b|, 1e-4 |all of b|) where it is largest: (ratio, name)."""
    total = torch.stack([g.double().norm() for g in reference.values()]).norm()
    ratio = {n: ((gradients[n].double() - g.double()).norm() / max(g.double().norm(), 1e-4 * total)).item()
             for n, g in reference.items()}
    name = max(ratio, key=ratio.get)
    return ratio[name], name
