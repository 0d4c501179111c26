"""The base of everything that crosses a process or a disk: frozen, and strict about unknown keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """Frozen; an unknown key is an error; NaN and infinity are written as JSON strings, never as invalid JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", protected_namespaces=())

    def to_json(self) -> str:
        """Indented JSON with a final newline, the same bytes for the same values."""
        return self.model_dump_json(indent=1) + "\n"
