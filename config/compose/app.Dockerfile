# syntax=docker/dockerfile:1
# The FastAPI application of config/compose.yaml. Built from the project's root.
FROM python:3.13-slim-trixie
WORKDIR /srv
COPY constraints.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt fastapi "uvicorn[standard]" python-multipart
COPY scripts/demo_app.py ./
USER 65534:65534
EXPOSE 8000
# tlsproxy's address in the network is not known in advance, hence "*": right only because nothing else can reach this port.
CMD ["uvicorn", "--host", "0.0.0.0", "--port", "8000", "--forwarded-allow-ips", "*", "demo_app:app"]
