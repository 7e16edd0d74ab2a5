"""`python -m scripts.soaking`, by way of scripts/soak."""

import sys

from scripts.soaking.cli import main

sys.exit(main())
