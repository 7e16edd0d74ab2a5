"""Where an exchange is, as its states (style 6). Changed by `Exchange` alone."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """CONNECTING and SENT wait for the backend, ANSWERING passes an answer on, TUNNEL is an upgraded connection."""

    NEW = 0
    CONNECTING = 1
    SENT = 2
    ANSWERING = 3
    TUNNEL = 4
    DONE = 5


# A global costs a third of looking a member up on its Enum.
NEW, CONNECTING, SENT, ANSWERING, TUNNEL, DONE = State
