"""No line of the given files ends with spaces, and each file ends with one newline.

Faults are named and mended; the exit code is 1 if there were any.
"""

from __future__ import annotations

import sys
from pathlib import Path


def mended(text: str) -> str:
    """The text without spaces at ends of lines, and with one newline at its end."""
    lines = [line.rstrip(" \t") for line in text.split("\n")]
    return "\n".join(lines).rstrip("\n") + "\n" if text.strip() else ""


def main() -> int:
    """Mend the files named on the command line."""
    found = 0
    for name in sys.argv[1:]:
        path = Path(name)
        text = path.read_text()
        if text != mended(text):
            path.write_text(mended(text))
            print(f"{name}: spaces at the end of a line, or of the file")
            found = 1
    return found


if __name__ == "__main__":
    sys.exit(main())
