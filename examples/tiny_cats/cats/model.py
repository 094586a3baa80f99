"""Two small networks, one update of their weights, and how often they are right."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from cats import data

CLASSES = 2


class Residual(nn.Module):
    """Add what two convolutions find to what is there already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.body(x)).relu()


def _stage(inputs: int, outputs: int) -> list[nn.Module]:
    """Halve the picture and widen it."""
    return [
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def _head(width: int) -> list[nn.Module]:
    return [
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(width, CLASSES),
    ]


def _cnn() -> nn.Module:
    return nn.Sequential(*_stage(3, 32), *_stage(32, 64), *_stage(64, 128), *_head(128))


def _resnet() -> nn.Module:
    return nn.Sequential(
        *_stage(3, 24), Residual(24), *_stage(24, 48), Residual(48), *_stage(48, 96), *_head(96)
    )


BACKBONES = {"cnn": _cnn, "resnet": _resnet}


def update(
    network: nn.Module, optimizer: Optimizer, batch: list[Tensor], *, lr: float, clip: float
) -> Tensor:
    """Take one step down the gradient; return the loss, still on the network's device."""
    device = next(network.parameters()).device
    pictures, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
    loss = functional.cross_entropy(network(data.augment(pictures)), labels)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return loss


def accuracy(network: nn.Module, dataset: Dataset) -> float:
    """Return the part of the pictures that the network names rightly."""
    device = next(network.parameters()).device
    network.eval()
    with torch.inference_mode():
        right = sum(
            int((network(data.plain(pictures.to(device))).argmax(1).cpu() == labels).sum())
            for pictures, labels in DataLoader(dataset, batch_size=256)
        )
    network.train()
    return right / len(dataset)


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Rise in a line, then fall along a cosine; a pure function of the step, so nothing to save."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
