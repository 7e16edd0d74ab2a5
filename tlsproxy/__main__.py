"""`python -m tlsproxy` is the command `tlsproxy`."""

import sys

from tlsproxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
