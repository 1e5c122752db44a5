"""Features that another part computed before, in place of pictures: a run without its tower (`run.cache_features`)."""

import torch
from torch import Tensor

from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry
from minigpt4.config.schema import Config
from minigpt4.models.vision.part import VisionPart


@registry.register_vision("cached_features")
class CachedFeatures(VisionPart):
    """Passes on features [B, rows, width]; it has no weights."""

    settings = ("rows", "width")

    @classmethod
    def shape(cls, config: Config) -> tuple[int, int]:
        rows, width = config.model.vision.rows, config.model.vision.width
        if rows is None or width is None:
            raise UserError("model.vision: cached_features needs rows and width. Set both to those of the features.")
        return rows, width

    def forward(self, features: Tensor) -> Tensor:
        """In fp32, whatever they were kept in.

        Raises:
            UserError: they have another shape, or are pictures.
        """
        if features.shape[1:] != (self.rows, self.width):
            raise UserError(
                f"model.vision: cached features are [{self.rows}, {self.width}] here, and {list(features.shape[1:])} "
                "was given. Fill run.cache_features again, or train and answer with the part that sees."
            )
        return features.float()

    def blank(self, device: torch.device) -> Tensor:
        return torch.zeros(1, self.rows, self.width, device=device)
