"""Lets `cyclecontrast.evaluate(...)` be a call although `cyclecontrast.evaluate` is a package of protocols too."""

import importlib
import sys
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A module that stands for a function of the same name, its own or that of the module called `__home__`."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Call the function that is named like the module."""
        home = importlib.import_module(self.__dict__["__home__"])
        return getattr(home, self.__name__.rpartition(".")[2])(*arguments, **settings)


def make_callable(name: str, home: str | None = None) -> None:
    """Make the module called `name` callable: it calls the function of that name in it, or in `home`."""
    module = sys.modules[name]
    module.__class__ = CallableModule
    module.__dict__["__home__"] = home or name
