"""What ran: a result without the versions of its packages cannot be repeated."""

import importlib.metadata
import platform

PACKAGES = ("cyclecontrast", "torch", "numpy", "opencv-python-headless", "av", "pyarrow", "scikit-learn")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
