"""Characters that a terminal obeys and does not show."""

from __future__ import annotations

CONTROL = "\x00-\x1f\x7f-\x9f"  # C0 and C1
# Marks of direction, separators of lines, halves of surrogate pairs, the mark of order.
OTHER = "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff"
UNPRINTABLE = f"[{CONTROL}{OTHER}]"
