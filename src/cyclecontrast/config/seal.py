"""Text that carries its own checksum in a first comment: a file that was cut or changed is told from one as written."""

import hashlib

HEAD = "# sha256 of the lines below, without which the run is not resumed: "


def sealed(text: str) -> str:
    """Return the text below its checksum."""
    return f"{HEAD}{_checksum(text)}\n{text}"


def is_sealed(text: str) -> bool:
    """Tell whether a text is as `sealed` returned it."""
    head, _, rest = text.partition("\n")
    return head == HEAD + _checksum(rest)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
