"""The four architectures as they are published elsewhere: plain torch, keys and all.

Written without `models`, to be what pretrained weights come from.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class MCifarNet(nn.Module):
    def __init__(self, channels: list[int], classes: int) -> None:
        super().__init__()
        for index, (a, b) in enumerate(zip([3, *channels], channels, strict=False)):
            stride, padding = (2 if index in (2, 5) else 1), int(index > 0)
            setattr(self, f"conv{index}", nn.Conv2d(a, b, 3, stride, padding, bias=False))
            setattr(self, f"norm{index}", nn.BatchNorm2d(b))
        self.linear = nn.Linear(channels[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for index in range(8):
            x = getattr(self, f"norm{index}")(getattr(self, f"conv{index}")(x)).relu()
        return self.linear(x.mean((2, 3)))


class VGG16(nn.Module):
    """`hidden` features in the linear layers of torchvision's form; 0 gives the CIFAR form."""

    def __init__(self, channels: int, classes: int, hidden: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for factor, repeats in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
            for _ in range(repeats):
                after = channels * factor
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
                before = after
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(7 if hidden else 1)
        self.classifier: nn.Module = nn.Linear(before, classes)
        if hidden:
            self.classifier = nn.Sequential(
                *(nn.Linear(before * 49, hidden), nn.ReLU(), nn.Dropout()),
                *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout()),
                nn.Linear(hidden, classes),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.extra = stride, after - before
        if project and (stride > 1 or self.extra):
            conv = nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if hasattr(self, "downsample"):
            return (y + self.downsample(x)).relu()
        side = self.extra // 2
        x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, side))
        return (y + x).relu()


class ResNet20(nn.Module):
    """The usual CIFAR form: shortcuts pad with zero channels on both sides (option A)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = stage(channels, channels, 3, project=False)
        self.layer2 = stage(channels, 2 * channels, 3, project=False)
        self.layer3 = stage(2 * channels, 4 * channels, 3, project=False)
        self.linear = nn.Linear(4 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class ResNet18(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = stage(channels, channels, 2, project=True)
        self.layer2 = stage(channels, 2 * channels, 2, project=True)
        self.layer3 = stage(2 * channels, 4 * channels, 2, project=True)
        self.layer4 = stage(4 * channels, 8 * channels, 2, project=True)
        self.fc = nn.Linear(8 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def stage(before: int, after: int, blocks: int, project: bool) -> nn.Sequential:
    """Residual blocks, the first of which changes shape."""
    first = Block(before, after, 1 if before == after else 2, project)
    return nn.Sequential(first, *(Block(after, after, 1, project) for _ in range(blocks - 1)))
