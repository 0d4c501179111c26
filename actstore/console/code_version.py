"""Tells which version of actstore runs."""

from __future__ import annotations


def code_version() -> str:
    """Return the version of this package."""
    # The package names what it offers only when it is asked, so this loads nothing.
    from actstore import __version__

    return __version__
