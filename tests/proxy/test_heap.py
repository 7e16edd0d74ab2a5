"""Large memory of a handshake gets pages of its own, and other memory does not."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# In a process of its own: what was freed before would be used first.
SCRIPT = """
import ctypes
from tlsproxy.proxy.heap import Apart

class Account(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Account
library.malloc.restype = ctypes.c_void_p

def mapped(size):
    before = library.mallinfo2().hblkhd
    assert library.malloc(ctypes.c_size_t(size))
    return library.mallinfo2().hblkhd - before

with Apart():
    pass
for _ in range(40):  # whatever is free already
    library.malloc(ctypes.c_size_t(1 << 20))
with Apart():
    print(mapped(1 << 20) > 0, mapped(16 << 10) > 0)
print(mapped(1 << 20) > 0, mapped(8 << 20) > 0)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library is not glibc 2.33 or newer")
def test_only_what_is_large_and_of_a_handshake_lies_apart() -> None:
    outcome = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert outcome.stderr == ""
    assert outcome.stdout.split() == ["True", "False", "False", "True"]
