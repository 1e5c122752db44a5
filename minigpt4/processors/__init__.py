"""Image and text transforms, looked up by name."""

from typing import Any

from minigpt4.common.config import ProcessorConfig
from minigpt4.common.errors import UserError
from minigpt4.common.registry import registry


def build_processor(config: ProcessorConfig) -> Any:
    """Builds the processor that a config block names.

    Raises:
        UserError: the name is unknown, or a key is not one of that processor's.
    """
    cls = registry.get_processor_class(config.name)
    try:
        return cls(**config.kwargs())
    except TypeError as error:
        raise UserError(f"processor {config.name}: {str(error).split('() ')[-1]}. Remove that key.") from None
