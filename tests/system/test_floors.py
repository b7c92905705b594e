"""Imports point down, and nothing heavy is imported for help, for errors, or by the package itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cyclecontrast

SOURCE = Path(cyclecontrast.__file__).parent
FLOORS = (
    ("config",),
    ("output", "errors"),
    ("files", "versions", "charts", "distributed", "progress"),
    ("data", "loss"),
    ("models",),
    ("methods",),
    ("training",),
    ("evaluation",),
    ("exporting", "reporting", "searching", "sweeping"),
    ("runs",),
    ("demo_run",),
    ("api",),
    ("__init__",),
    ("cli", "__main__"),
)
HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names}
PURE = ("config", "loss", "evaluation/metrics.py")


def imports_of(path):
    """Return the packages that a file imports, and whether it does so inside of a function."""
    found = []
    tree = ast.parse(path.read_text())
    inside = {
        node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    typing_only = {node for test in ast.walk(tree) if _is_type_checking(test) for node in ast.walk(test)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node not in typing_only:
            found.append((node.module, node in inside, [name.name for name in node.names]))
    return [
        (name if module == "cyclecontrast" else module.split(".")[1], lazy)
        for module, lazy, names in found
        if module.split(".")[0] == "cyclecontrast"
        for name in names
    ]


def _is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path):
    """A file imports only from packages of its own level and from those below."""
    floor = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for imported, _ in imports_of(path):
        name = imported if imported in HEIGHT else "__init__"
        assert HEIGHT[name] <= HEIGHT[floor], f"{path} imports {imported}"


@pytest.mark.parametrize("name", PURE)
def test_pure_files_import_nothing_of_ours(name):
    """Configs, losses and metrics import nothing of the package but each other."""
    pure = tuple("cyclecontrast." + name.removesuffix(".py").replace("/", ".") for name in PURE)
    files = [SOURCE / name] if name.endswith(".py") else list((SOURCE / name).rglob("*.py"))
    assert files
    for path in files:
        modules = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert all(module.startswith(pure) for module in modules if module.startswith("cyclecontrast"))


COMMAND_LINES = """
--help
pretrain --help
evaluate --help
evaluate linear --help
pretrain --sped 3
nonsense
evaluate nonsense
pretrain data --out run --print-config
pretrain nowhere --out run --backbone resnet17
prepare nowhere --out run
evaluate knn nothing nowhere
embed nothing nowhere --out x.npz
export nothing
runs --help
runs ls --help
runs compare
search --help
search nothing.npz --image nothing.png
explore nothing.npz
label --help
""".strip().splitlines()


def test_help_and_errors_import_no_torch(tmp_path):
    """Importing the package, help, mistakes on the command line and --print-config do not import PyTorch."""
    code = (
        "import sys, cyclecontrast\nfrom cyclecontrast.cli import main\n"
        "for line in sys.argv[1:]: main(line.split())\nprint(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *COMMAND_LINES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    loaded = set(done.stderr.splitlines()[-1].split())
    assert "cyclecontrast.cli" in loaded
    assert not loaded & {"torch", "cv2", "av", "sklearn", "pyarrow", "matplotlib", "scipy", "rich"}
    assert "Traceback" not in done.stderr
