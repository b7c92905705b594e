"""Lets `cyclecontrast.evaluate(...)` be a call although `cyclecontrast.evaluate` is a package of protocols too."""

import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module that stands for its function of the same name."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Call the function that is named like the module."""
        return self.__dict__[self.__name__.rpartition(".")[2]](*arguments, **settings)


def make_callable(name: str) -> None:
    """Make the module called `name` callable: it calls its function of that name."""
    sys.modules[name].__class__ = CallableModule
