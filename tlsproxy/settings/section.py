"""What every section of the configuration is: frozen, closed, and silent about what it was given.

Knows besides its fields which of its keys are secrets (each may also be given as `KEY_file`) and which name files.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


def _describe_file_twins(schema: dict[str, Any], model: type[Any]) -> None:
    """Tell the JSON Schema about `KEY_file`, which is no field: it is read before anything is validated."""
    for key in model.SECRETS:
        about = f"File that holds {key}: whoever reads the configuration reads it, once."
        schema["properties"][f"{key}_file"] = {"type": "string", "description": about}


class Section(BaseModel):
    """Frozen; a key that is not known is an error; an error never repeats a value, which may be a secret."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=False,
        hide_input_in_errors=True,
        json_schema_extra=_describe_file_twins,
    )
    SECRETS: ClassVar[tuple[str, ...]] = ()
    FILES: ClassVar[tuple[str, ...]] = ()
