"""docs/reliability.md names tests and commands that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()


def test_the_tests_on_the_page_exist():
    """Every test and every file of tests that a row of the page leans on is there."""
    written = "\n".join(path.read_text() for path in sorted((ROOT / "tests").glob("test_*.py")))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 30
    assert {name for name in named if f"def {name}(" not in written} == set()
    files = set(re.findall(r"`((?:tests|faults|fuzz|benchmarks)/\w+\.py)`", PAGE))
    files |= set(re.findall(r"python ((?:faults|fuzz|benchmarks)/\w+\.py)", PAGE))
    assert {name for name in files if not (ROOT / name).exists()} == set()
