"""Statistics of the inputs of a PyTorch model's layers, for `twn-pack MODEL --calibration stats.safetensors`.

The file is described in spec/calibration-v1.md: for each weight of a Linear, Conv1d, Conv2d or Conv3d, or of GPT-2's
Conv1D, the sum of x·xᵀ over the rows x that its filters are multiplied with. Use it as a module:

    from calibrate_pytorch import Calibration
    with torch.no_grad(), Calibration(model) as calibration:
        for batch in data:                      # some hundred inputs
            model(**batch)
    calibration.save("stats.safetensors")

GPT-2's Conv1D weights have their filters along axis 1: pack them with `--axis 1`, or `--set PATTERN axis=1` (square ones fit
along axis 0 as well, and are wrong then).

Run as a script it checks itself on small layers. Needs torch and safetensors.
"""

import inspect
import math
import warnings

import torch
from safetensors.torch import save_file
from torch import nn


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_linear(module):
    """Also the layer of GPT-2 and its kin, whose weights are [inputs, outputs]."""
    return isinstance(module, nn.Linear) or (type(module).__name__ == "Conv1D" and module.weight.dim() == 2)


def input_name(module):
    """What `forward` calls its first argument: some callers give it by keyword."""
    return next(iter(inspect.signature(module.forward).parameters))


class Calibration:
    """Collects while it is entered. With `diagonal`, only the diagonal: n numbers a layer instead of n².

    `prefix` is put before the names of `model.named_modules()`, where the checkpoint's names have one.
    """

    def __init__(self, model, diagonal=False, prefix="", dtype=torch.float64):
        self.diagonal, self.dtype = diagonal, dtype
        self.sums, self.hooks, self.layers, self.others = {}, [], {}, []
        for name, module in model.named_modules():
            if is_linear(module) or isinstance(module, CONVOLUTIONS):
                self.layers[f"{prefix}{name}.weight"] = module
            elif not isinstance(module, nn.Embedding):
                own = module.named_parameters(recurse=False)
                self.others += [f"{prefix}{name}.{key}" for key, weights in own if weights.dim() >= 2]

    def __enter__(self):
        for name, module in self.layers.items():
            self.hooks.append(module.register_forward_pre_hook(self._hook(name, module), with_kwargs=True))
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()

    def _hook(self, name, module):
        first = input_name(module)

        def hook(module, args, keywords):
            self._add(name, module, args[0] if args else keywords[first])

        return hook

    def _add(self, name, module, x):
        for group, rows in enumerate(self._rows(module, x.detach())):
            rows = rows.to(self.dtype)
            key = (name, group)
            if key not in self.sums:
                self.sums[key] = [0, 0, 0]
            sums = self.sums[key]
            sums[0] = sums[0] + ((rows * rows).sum(0) if self.diagonal else rows.T @ rows)
            sums[1] = sums[1] + rows.sum(0)
            sums[2] += rows.shape[0]

    @staticmethod
    def _rows(module, x):
        """[rows, n] for each group of filters, in the order of the weights."""
        if is_linear(module):
            yield x.reshape(-1, x.shape[-1])
            return
        sizes = module.kernel_size
        x = x if x.dim() == 2 + len(sizes) else x.unsqueeze(0)
        # As the layer does it: its padding may be a word, or not of zeros.
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        # [images, channels, places along each axis, kernel along each axis]
        for axis, (size, step, gap) in enumerate(zip(sizes, module.stride, module.dilation), start=2):
            x = x.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
        places = range(2, 2 + len(sizes))
        for part in x.chunk(module.groups, dim=1):
            patches = part.permute(0, *places, 1, *range(2 + len(sizes), x.dim()))
            yield patches.reshape(-1, part.shape[1] * math.prod(sizes))

    def save(self, path):
        tensors = {}
        for name, module in self.layers.items():
            groups = getattr(module, "groups", 1)
            if (name, 0) not in self.sums:
                continue
            stack = lambda i: torch.stack([self.sums[name, g][i] for g in range(groups)])
            shaped = lambda values: values[0].clone() if groups == 1 else values
            tensors[f"{name}.xtx_diagonal" if self.diagonal else f"{name}.xtx"] = shaped(stack(0))
            tensors[f"{name}.x_sum"] = shaped(stack(1))
            tensors[f"{name}.rows"] = torch.tensor(self.sums[name, 0][2], dtype=torch.int64)
        missing = [name for name in self.layers if (name, 0) not in self.sums] + self.others
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            warnings.warn(f"no statistics of {', '.join(missing[:3])}{more}: layers that were not run, or of another kind")
        save_file(tensors, path, metadata={"format": "twn-calibration-1"})


class Conv1D(nn.Module):
    """GPT-2's, for the check."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x):
        return x @ self.weight


def check():
    """Outputs without bias are W·x for the rows: so their squares have to agree with the sums."""
    torch.manual_seed(0)
    images, sounds, volumes = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 20), torch.randn(3, 2, 5, 6, 7)
    cases = [
        (nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), images),
        (nn.Conv2d(4, 5, (2, 3), stride=2, dilation=(1, 2), bias=False), images),
        (nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect", groups=4, bias=False), images),
        (nn.Conv1d(4, 6, 5, stride=2, padding=2, dilation=2, groups=2, bias=False), sounds),
        (nn.Conv3d(2, 3, (1, 2, 3), padding=1, stride=(1, 2, 1), bias=False), volumes),
        (nn.Linear(20, 7, bias=False), sounds),
        (Conv1D(20, 7), sounds),
    ]
    for module, x in cases:
        module, x = nn.Sequential(module.double()), x.double()
        with torch.no_grad(), Calibration(module) as calibration:
            module(x[:2])
            module[0](**{input_name(module[0]): x[2:]})
        y, weight = module(x).detach(), module[0].weight.detach()
        weight = weight.T if isinstance(module[0], Conv1D) else weight.flatten(1)
        parts = enumerate(weight.chunk(getattr(module[0], "groups", 1)))
        energy = sum((w @ calibration.sums["0.weight", group][0] @ w.T).trace() for group, w in parts)
        assert torch.allclose(energy, (y * y).sum()), (module, energy, (y * y).sum())
        calibration.save("stats.safetensors")
    print("good; wrote stats.safetensors")


if __name__ == "__main__":
    check()
