"""Notes what a stage launches, in order, and refuses what would wait for the device."""

from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime.interpreter import GridExecutor
from triton.runtime.jit import JITFunction

# these read a value of the device, or make a shape of one
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "item"}
_READS = ("item", "tolist", "numpy", "cpu")


class Launches(TorchDispatchMode):
    """Between `with` and its end every operator and kernel goes into `log`.

    Attributes:
        log: (name, arguments) of each; tensors as dtype, shape and strides, the rest as it is.
    """

    def __init__(self):
        super().__init__()
        self.log, self._patches = [], []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name in _WAITS:
            raise AssertionError(f"{name} waits for the device")
        self.log.append((name, _plain(args), _plain(kwargs or {})))
        return operator(*args, **(kwargs or {}))

    def __enter__(self):
        for name in _READS:
            self._patch(torch.Tensor, name, _refusing(name))
        self._patch(GridExecutor, "__call__", self._interpreted(GridExecutor.__call__))
        self._patch(JITFunction, "run", self._compiled(JITFunction.run))
        return super().__enter__()

    def __exit__(self, *failure):
        for change in reversed(self._patches):
            change.stop()
        return super().__exit__(*failure)

    def _patch(self, owner, name, new) -> None:
        change = patch.object(owner, name, new)
        change.start()
        self._patches.append(change)

    def _compiled(self, run):
        def launch(kernel, *args, **kwargs):
            self.log.append((kernel.fn.__name__, _plain(args), _plain(kwargs)))
            return run(kernel, *args, **kwargs)

        return launch

    def _interpreted(self, execute):
        real = {name: getattr(torch.Tensor, name) for name in _READS}
        real = {n: f if not hasattr(f, "refused") else f.refused for n, f in real.items()}

        def launch(executor, *args, **kwargs):
            self.log.append((executor.fn.__name__, _plain(args), _plain(kwargs)))
            # the interpreter reads whatever it likes
            with _disable_current_modes(), patch.multiple(torch.Tensor, **real):
                return execute(executor, *args, **kwargs)

        return launch


def _refusing(name: str):
    def refuse(*_args, **_kwargs):
        raise AssertionError(f"Tensor.{name} waits for the device")

    refuse.refused = getattr(torch.Tensor, name)
    return refuse


def _plain(value):
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), tuple(value.stride())
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return tuple((name, _plain(entry)) for name, entry in value.items())
    return str(value)  # of numbers too: NaN is not NaN
