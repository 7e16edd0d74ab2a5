"""The soak: hours of moderate load while everything is changed under it, and what that did to errors and memory."""
