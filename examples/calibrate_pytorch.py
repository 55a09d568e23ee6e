"""Statistics of the inputs of a PyTorch model's layers, for `twn-pack MODEL --calibration stats.safetensors`.

The file is described in spec/calibration-v1.md: for each Linear and Conv2d weight the sum of x·xᵀ over
the rows x that its filters are multiplied with. Use it as a module:

    from calibrate_pytorch import Calibration
    with torch.no_grad(), Calibration(model) as calibration:
        for batch in data:                      # some hundred inputs
            model(**batch)
    calibration.save("stats.safetensors")

Run as a script it checks itself on a small model. Needs torch and safetensors.
"""

import torch
from safetensors.torch import save_file
from torch import nn


class Calibration:
    """Collects while it is entered. With `diagonal`, only the diagonal: n numbers a layer instead of n².

    `prefix` is put before the names of `model.named_modules()`, where the checkpoint's names have one.
    """

    def __init__(self, model, diagonal=False, prefix="", dtype=torch.float64):
        self.diagonal, self.dtype = diagonal, dtype
        self.sums, self.hooks, self.layers = {}, [], {}
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                self.layers[f"{prefix}{name}.weight"] = module

    def __enter__(self):
        for name, module in self.layers.items():
            hook = lambda module, inputs, name=name: self._add(name, module, inputs[0])
            self.hooks.append(module.register_forward_pre_hook(hook))
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

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
        if isinstance(module, nn.Linear):
            return [x.reshape(-1, x.shape[-1])]
        x = x if x.dim() == 4 else x.unsqueeze(0)
        # As the layer does it: its padding may be a word, or not of zeros.
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        parts = []
        for part in x.chunk(module.groups, dim=1):
            columns = nn.functional.unfold(part, module.kernel_size, module.dilation, 0, module.stride)
            parts.append(columns.transpose(1, 2).reshape(-1, columns.shape[1]))
        return parts

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
        save_file(tensors, path, metadata={"format": "twn-calibration-1"})


def check():
    """Outputs without bias are W·x for the rows: so their squares have to agree with the sums."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), nn.ReLU(), nn.Conv2d(6, 5, (2, 3), stride=2, bias=False),
        nn.Flatten(), nn.Linear(5 * 4 * 3, 7, bias=False),
    ).double()
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    with torch.no_grad(), Calibration(model) as calibration:
        model(x[:2])
        model(x[2:])
    y = x
    for number, module in enumerate(model):
        y = module(y).detach()
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            parts = enumerate(module.weight.detach().flatten(1).chunk(getattr(module, "groups", 1)))
            energy = sum((w @ calibration.sums[f"{number}.weight", group][0] @ w.T).trace() for group, w in parts)
            assert torch.allclose(energy, (y * y).sum()), (number, energy, (y * y).sum())
    calibration.save("stats.safetensors")
    print("good; wrote stats.safetensors")


if __name__ == "__main__":
    check()
