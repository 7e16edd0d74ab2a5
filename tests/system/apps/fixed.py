"""The application after the proxy's advice was followed: FIX is the expression that the advice ends in."""

from __future__ import annotations

import importlib
import os
from typing import Any

from tests.system.apps import everything

app: Any = everything.app
if fix := os.environ.get("FIX"):
    package, _, rest = fix.partition(".")
    module = importlib.import_module(fix.partition("(")[0].rpartition(".")[0])
    app = eval(fix, {"app": app, package: importlib.import_module(package), "module": module})
