"""The HTTPS front door of FastAPI applications: TLS termination, certificates, forwarding."""

__version__ = "0.1.0"
