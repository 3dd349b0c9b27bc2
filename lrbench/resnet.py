"""Residual networks (K. He, X. Zhang, S. Ren, J. Sun, 2016, "Deep residual learning for image recognition").

The stride of a bottleneck is on its 3x3 convolution, as everybody runs it since. Parameters of ``resnet18`` and
``resnet50`` are named and ordered as torchvision's, so that its state dictionaries fit. Every ReLU is a module of its
own: what each of them keeps can be told apart.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "resnet18", "resnet20", "resnet50"]


class ZeroPadded(nn.Module):
    """A shortcut without parameters (section 3.3, option A): every other pixel, and zeros in the channels that are new.

    Parameters
    ----------
    channels, wider : int
        Of the input and of the output.
    stride : int
        Of the pixels that are left.
    """

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.stride, self.before = stride, max(0, (wider - channels) // 2)
        self.after = max(0, wider - channels) - self.before
        self.wider = wider

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, wider, ⌈H/stride⌉, ⌈W/stride⌉); what is too many channels is left out."""
        x = x[:, : self.wider, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (figure 5, left): channels -> width, the first one strided."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, width, ⌈H/stride⌉, ⌈W/stride⌉)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """A 1x1, a strided 3x3 and a 1x1 convolution beside a shortcut (figure 5, right): channels -> 4·width."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu3 = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, 4·width, ⌈H/stride⌉, ⌈W/stride⌉)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu3(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A stem, stages of residual blocks, global average pooling and a linear layer.

    Parameters
    ----------
    block : type
        :class:`BasicBlock` or :class:`Bottleneck`.
    depths : sequence of int
        Blocks of each stage.
    widths : sequence of int
        Of each stage; the first is the stem's, too. From the second stage on a stage begins with stride 2.
    classes : int
        Number of classes.
    cifar : bool
        Whether the stem is a 3x3 convolution and shortcuts have no parameters (section 4.2), or the stem is a strided
        7x7 convolution and a pooling, and shortcuts between unlike shapes are projections (section 4.1, option B).

    Raises
    ------
    ValueError
        If there is not one positive width for each stage, or no class.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int],
        classes: int,
        cifar: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths) or min(widths) < 1:
            raise ValueError(f"widths are {tuple(widths)}: this network takes {len(depths)} positive numbers")
        if classes < 1:
            raise ValueError(f"classes is {classes}: use at least 1")
        channels = widths[0]
        stem = (3, 1, 1) if cifar else (7, 2, 3)
        self.conv1 = nn.Conv2d(3, channels, *stem, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if cifar else nn.MaxPool2d(3, 2, 1)
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
            blocks = []
            for position in range(depth):
                stride = 2 if stage > 1 and position == 0 else 1
                shortcut = _shortcut(channels, width * block.expansion, stride, cifar)
                blocks.append(block(channels, width, stride, shortcut))
                channels = width * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # K. He et al., 2015, "Delving deep into rectifiers", equation 14: the backward pass keeps its scale.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to class scores (N, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        scores: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return scores


def _shortcut(channels: int, wider: int, stride: int, cifar: bool) -> nn.Module | None:
    """What makes a block's input fit its output; nothing where it does."""
    if stride == 1 and channels == wider:
        return None
    if cifar:
        return ZeroPadded(channels, wider, stride)
    return nn.Sequential(nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))


def resnet18(widths: Sequence[int] = (64, 128, 256, 512), classes: int = 1000) -> ResNet:
    """ResNet-18 for photographs, such as 224x224 (table 1): 20 convolutions, 11,689,512 parameters.

    Parameters
    ----------
    widths : sequence of int
        Of the four stages.
    classes : int
        Number of classes.
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), widths, classes)


def resnet50(widths: Sequence[int] = (64, 128, 256, 512), classes: int = 1000) -> ResNet:
    """ResNet-50 for photographs, such as 224x224 (table 1): 53 convolutions, 25,557,032 parameters.

    Parameters
    ----------
    widths : sequence of int
        Of the four stages' 3x3 convolutions; a stage's output is four times as wide.
    classes : int
        Number of classes.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), widths, classes)


def resnet20(widths: Sequence[int] = (16, 32, 64), classes: int = 10) -> ResNet:
    """ResNet-20 for CIFAR's 32x32 images (section 4.2, option A): 19 convolutions, 269,722 parameters.

    Parameters
    ----------
    widths : sequence of int
        Of the three stages.
    classes : int
        Number of classes.
    """
    return ResNet(BasicBlock, (3, 3, 3), widths, classes, cifar=True)
