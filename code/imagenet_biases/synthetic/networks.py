"""The calibration networks: small convolutional networks on drawn pictures, with 1,000 logits like any other."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imagenet_biases.networks.user_code import class_id
from imagenet_biases.synthetic.drawings import CATEGORIES
from imagenet_biases.vocabulary import identified


@identified(class_id("calibration"))
class CalibrationNetwork(nn.Module):
    """A small convolutional network: [N, 3, 224, 224] pixels in [0, 1] -> [N, 1000] logits.

    Each picture is first brought to mean 0 and standard deviation 1 (over all its values). Sixteen logits are learned,
    one for the class of each category; all other classes get FLOOR, far below them.
    """

    FLOOR = -100.0

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_layer(3, 24, kernel=9, stride=4),
            *_layer(24, 32, kernel=3, stride=2),
            *_layer(32, 48, kernel=3, stride=2),
            *_layer(48, 64, kernel=3, stride=1),
            *_layer(64, 96, kernel=3, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.scores = nn.Linear(96, len(CATEGORIES))
        numbers = torch.tensor([category.number for category in CATEGORIES])
        self.register_buffer("numbers", numbers, persistent=False)

    def _get_name(self) -> str:
        return "Network"  # as in the fingerprints of stored responses

    def forward(self, pixels: Float[Tensor, "N 3 224 224"]) -> Float[Tensor, "N 1000"]:
        """Return the logits."""
        variance, mean = torch.var_mean(pixels, (1, 2, 3), keepdim=True)
        scores = self.scores(self.features((pixels - mean) * torch.rsqrt(variance + 1e-5)))
        return scores.new_full((scores.shape[0], 1000), self.FLOOR).index_copy(1, self.numbers, scores)


def _layer(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def build() -> CalibrationNetwork:
    """Return the architecture of both calibration networks, with random weights (filled by the zoo)."""
    return CalibrationNetwork()
