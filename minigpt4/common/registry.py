"""One table of everything that a YAML file names. A look-up imports the kind's package: nothing registers by chance."""

import importlib
import pkgutil
from collections.abc import Callable
from functools import partialmethod
from typing import Any, TypeVar

from minigpt4.common.errors import UserError, did_you_mean

T = TypeVar("T", bound=Callable[..., Any])

_PACKAGES = {
    "model": "minigpt4.models",
    "vision": "minigpt4.models.vision",
    "projection": "minigpt4.models.projection",
    "builder": "minigpt4.datasets.builders",
    "format": "minigpt4.datasets.formats",
    "processor": "minigpt4.processors",
    "task": "minigpt4.tasks",
    "runner": "minigpt4.runners",
    "lr_scheduler": "minigpt4.runners.optims",
    "benchmark": "minigpt4.evaluation.benchmarks",
}


class Registry:
    """Maps (kind, name) to a class, or a function that makes an object, with the decorators and look-ups of LAVIS.

    Attributes:
        table: {kind: {name: what is registered}}, of the packages that were imported so far.
    """

    def __init__(self) -> None:
        self.table: dict[str, dict[str, Any]] = {kind: {} for kind in _PACKAGES}
        self._imported: set[str] = set()

    def register(self, kind: str, *names: str) -> Callable[[T], T]:
        """Decorator: registers a class under one or more names. A name taken by another class is our bug."""

        def wrap(item: T) -> T:
            for name in names:
                taken = self.table[kind].setdefault(name, item)
                assert taken.__qualname__ == item.__qualname__, f"{kind} '{name}' is taken by {taken}"
            return item

        return wrap

    def get(self, kind: str, name: str) -> Any:
        """Returns what is registered under the name.

        Raises:
            UserError: nothing is; the message lists the names that are.
        """
        self._import(kind)
        if name not in self.table[kind]:
            raise UserError(f"'{name}' is not a registered {kind}.{did_you_mean(name, self.table[kind])}")
        return self.table[kind][name]

    def names(self, kind: str) -> list[str]:
        """All names of a kind."""
        self._import(kind)
        return sorted(self.table[kind])

    def build(self, kind: str, name: str, **arguments: Any) -> Any:
        """Makes an object of the class that is registered under the name.

        Raises:
            UserError: nothing is, or the class does not take one of the arguments, or needs another.
        """
        cls = self.get(kind, name)
        try:
            return cls(**arguments)
        except TypeError as error:
            raise UserError(f"{kind} {name}: {str(error).split('() ')[-1]}. Remove that key.") from None

    def _import(self, kind: str) -> None:
        if kind in self._imported:
            return
        package = importlib.import_module(_PACKAGES[kind])
        for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
            importlib.import_module(f"{package.__name__}.{module.name}")
        self._imported.add(kind)

    register_model = partialmethod(register, "model")
    register_vision = partialmethod(register, "vision")
    register_projection = partialmethod(register, "projection")
    register_builder = partialmethod(register, "builder")
    register_format = partialmethod(register, "format")
    register_processor = partialmethod(register, "processor")
    register_task = partialmethod(register, "task")
    register_runner = partialmethod(register, "runner")
    register_lr_scheduler = partialmethod(register, "lr_scheduler")
    register_benchmark = partialmethod(register, "benchmark")

    get_model_class = partialmethod(get, "model")
    get_vision_class = partialmethod(get, "vision")
    get_projection_class = partialmethod(get, "projection")
    get_builder_class = partialmethod(get, "builder")
    get_format_class = partialmethod(get, "format")
    get_task_class = partialmethod(get, "task")
    get_runner_class = partialmethod(get, "runner")
    get_lr_scheduler_class = partialmethod(get, "lr_scheduler")


registry = Registry()
