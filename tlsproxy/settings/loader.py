"""Gather the configuration from its layers and check it whole. (stub of the first step)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlsproxy.settings.models import Settings


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, where each value came from, and the file that was read (None: none)."""

    settings: Settings
    origins: dict[str, str]
    path: Path | None


def load(config: Path | None, options: Mapping[str, Any], environ: Mapping[str, str]) -> Loaded:
    """Read everything."""
    raise NotImplementedError
