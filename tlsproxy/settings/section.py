"""What every section of the configuration is: frozen, closed, and silent about what it was given."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen; a key that is not known is an error; an error never repeats a value, which may be a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, hide_input_in_errors=True)
