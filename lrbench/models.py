"""The models that runs are made of."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import nn

from lrbench.foreign import build_foreign, is_foreign
from lrbench.names import MODELS
from lrbench.resnet import resnet18, resnet20, resnet50

__all__ = ["build_model", "build_on_meta", "list_models", "own_widths", "paper_cnn"]


def paper_cnn(widths: Sequence[int] = (32, 64, 128), classes: int = 10, image_size: int = 32) -> nn.Sequential:
    """Build the paper's network: {conv, conv, dropout, pool} x 3, {fc, dropout}, fc.

    The paper gives no widths. It puts a dropout behind the last fully connected layer as well, where it would fall on
    the class scores; that one is left out, and the softmax is left to the loss. The six convolutions are ``conv1`` to
    ``conv6``, the bits of a mask.

    Parameters
    ----------
    widths : sequence of int
        Output channels of the three pairs of 3x3 convolutions.
    classes : int
        Number of classes.
    image_size : int
        Height and width of the RGB images, a multiple of 8.

    Raises
    ------
    ValueError
        If there are not three positive widths, or the images cannot be pooled three times.
    """
    if len(widths) != 3 or min(widths) < 1:
        raise ValueError(f"widths are {tuple(widths)}: the paper's network takes three positive numbers")
    if image_size < 8 or image_size % 8:
        raise ValueError(f"images are {image_size} pixels wide: the paper's network takes a multiple of 8")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for pair, width in enumerate(widths, start=1):
        for position in (2 * pair - 1, 2 * pair):
            layers[f"conv{position}"] = nn.Conv2d(channels, width, 3, padding=1)
            layers[f"relu{position}"] = nn.ReLU()
            channels = width
        layers[f"dropout{pair}"] = nn.Dropout(0.25)
        layers[f"pool{pair}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(channels * (image_size // 8) ** 2, 512)
    layers["relu7"] = nn.ReLU()
    layers["dropout4"] = nn.Dropout(0.5)
    layers["fc2"] = nn.Linear(512, classes)
    return nn.Sequential(layers)


_MODELS: dict[str, Callable[..., nn.Module]] = dict(zip(MODELS, (paper_cnn, resnet18, resnet20, resnet50), strict=True))


def list_models() -> list[str]:
    """Names that :func:`build_model` takes."""
    return sorted(_MODELS)


def own_widths(name: str) -> tuple[int, ...]:
    """The widths that a model has where none are given; those of others have none.

    Raises
    ------
    ValueError
        If there is no such model.
    """
    if is_foreign(name):
        return ()
    return tuple(inspect.signature(_builder(name)).parameters["widths"].default)


def build_model(name: str, widths: Sequence[int] | None, classes: int) -> nn.Module:
    """Make a model with freshly drawn weights.

    Parameters
    ----------
    name : str
        One of :func:`list_models`, or one of others': see :mod:`lrbench.foreign`.
    widths : sequence of int or None
        As the model takes them; none, or an empty sequence, for its own, and for models of others.
    classes : int
        Number of classes.

    Raises
    ------
    ValueError
        If there is no such model, or it does not take these widths.
    """
    if is_foreign(name):
        if widths:
            raise ValueError(f"widths are {tuple(widths)}: {name} takes none, only {', '.join(list_models())} do")
        return build_foreign(name, classes)
    return _builder(name)(widths=widths or own_widths(name), classes=classes)


def build_on_meta(name: str, widths: Sequence[int] | None, classes: int) -> nn.Module:
    """Make a model on the meta device, where no number is drawn; one of others that cannot be made there is moved."""
    try:
        with torch.device("meta"):
            return build_model(name, widths, classes)
    except ValueError:
        if not is_foreign(name):
            raise
        with torch.random.fork_rng(devices=[]):
            return build_model(name, widths, classes).to("meta")


def _builder(name: str) -> Callable[..., nn.Module]:
    if name not in _MODELS:
        raise ValueError(f"there is no model {name!r}: use {', '.join(list_models())}, or package.module:function")
    return _MODELS[name]
