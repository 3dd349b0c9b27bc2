"""Models of others by name: ``package.module:function``, ``torchvision:NAME`` and ``timm:NAME``.

A function is called with ``classes=N`` or ``num_classes=N`` if it has a parameter of that name, with nothing else; it
gives a torch.nn.Module. Modules are also looked for in the present folder. Nothing is downloaded: weights are drawn.
"""

import hashlib
import importlib
import inspect
import sys
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lrbench.names import MODELS

__all__ = ["build_foreign", "is_foreign", "structure_of"]

_COUNTS = ("classes", "num_classes")


def is_foreign(name: str) -> bool:
    """Whether a model's name is that of somebody else's."""
    return ":" in name


def build_foreign(name: str, classes: int) -> nn.Module:
    """Make a model of others with freshly drawn weights.

    Parameters
    ----------
    name : str
        ``package.module:function``, ``torchvision:NAME`` or ``timm:NAME``.
    classes : int
        Number of classes, for a function that takes it.

    Raises
    ------
    ValueError
        If that cannot be imported, or gives no model.
    """
    module, _, function = name.partition(":")
    own = module not in ("torchvision", "timm")
    if not function or (own and not all(part.isidentifier() for part in (*module.split("."), function))):
        raise ValueError(f"the model is {name!r}: use {', '.join(MODELS)} or package.module:function")
    try:
        if module == "torchvision":
            make = partial(importlib.import_module("torchvision.models").get_model, function)
            given = {"num_classes": classes}
        elif module == "timm":
            make, given = partial(importlib.import_module("timm").create_model, function), {"num_classes": classes}
        else:
            make = _function(module, function)
            given = {key: classes for key in _COUNTS if key in _parameters(make)}
    except (Exception, SystemExit) as error:
        raise ValueError(f"{name} cannot be imported ({_reason(error)}): name a function in a module") from error
    if not callable(make):
        raise ValueError(f"{name} is a {type(make).__name__}: name a function that gives a torch.nn.Module")
    called = f"called with {', '.join(f'{key}={value}' for key, value in given.items()) or 'no argument'}"
    try:
        model = make(**given)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{name} gives no model when it is {called} ({_reason(error)})") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} gives a {type(model).__name__}: name a function that gives a torch.nn.Module")
    return model


def structure_of(model: nn.Module) -> str:
    """Hash the names and kinds of a model's layers, what they say of themselves, and the shapes of its numbers.

    Two models of one name that differ in these are different models: runs are told apart by it. What a ``forward`` of
    their own does is not seen.
    """
    lines = [f"{name} {type(module).__name__} {_said(module)}" for name, module in model.named_modules()]
    lines += [f"{name} {tuple(value.shape)} {value.dtype}" for name, value in model.state_dict().items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _said(module: nn.Module) -> str:
    if not isinstance(module, nn.Conv2d):
        return module.extra_repr()
    # What most have is left out: runs that were told apart without it stay what they are.
    mode = "" if module.padding_mode == "zeros" else f" {module.padding_mode}"
    return f"{module.kernel_size} {module.stride} {module.padding} {module.dilation} {module.groups}{mode}"


def _function(module: str, function: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # as python -m has it; and last, so that it hides nothing
    found = importlib.import_module(module)
    return getattr(found, function)


def _parameters(made: Any) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(made).parameters)
    except (TypeError, ValueError):  # it has none that could be known, or is no function
        return frozenset()


def _reason(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
