"""Image and text transforms, looked up by name."""

from typing import Any

from minigpt4.common.registry import registry
from minigpt4.config.schema import ProcessorConfig


def build_processor(config: ProcessorConfig) -> Any:
    """Builds the processor that a config block names.

    Raises:
        UserError: the name is unknown, or a key is not one of that processor's.
    """
    return registry.build("processor", config.name, **config.kwargs())
