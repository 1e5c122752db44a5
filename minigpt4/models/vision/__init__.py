"""Vision parts. Each module registers a kind that `model.vision.name` may name."""

from minigpt4.common.registry import registry
from minigpt4.config.schema import Config, ModelConfig
from minigpt4.models.vision.cached_features import CachedFeatures
from minigpt4.models.vision.part import VisionPart


def vision_class(config: ModelConfig) -> type[VisionPart]:
    """The class of the kind that a config names."""
    return registry.get_vision_class(config.vision_kind)


def build_vision(config: Config, towers: bool = True) -> VisionPart:
    """Builds the vision part that a config names, without its weights; without `towers` what reads its cached features.

    Raises:
        UserError: a folder that the config names is not there, or says something else than the config.
    """
    kind = vision_class(config.model)
    return kind(config) if towers else CachedFeatures(config, kind.shape(config))
