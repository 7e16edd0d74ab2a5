# syntax=docker/dockerfile:1
# tlsproxy as one image: built in one stage, run in another that has neither pip's cache nor a compiler.
# Debian 13 (trixie) because its OpenSSL 3.5 has X25519MLKEM768, the key exchange browsers ask for first.
ARG PYTHON=3.13-slim-trixie

FROM python:${PYTHON} AS build
WORKDIR /src
# --copies: the final image gives the venv's python a capability, so it must be a file of its own and not a link to
# the system's python, which keeps none. `python -m pip` (and not `pip`) makes bin/tlsproxy run by exactly that file.
RUN python -m venv --copies /opt/tlsproxy
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY tlsproxy/ tlsproxy/
RUN /opt/tlsproxy/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt . \
    && /opt/tlsproxy/bin/python -m compileall -q /opt/tlsproxy/lib \
    && /opt/tlsproxy/bin/python -m pip uninstall -y -q pip

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="tlsproxy" \
      org.opencontainers.image.description="The HTTPS front door of FastAPI applications" \
      org.opencontainers.image.licenses="MIT"

COPY --from=build /opt/tlsproxy /opt/tlsproxy

# Ports 80 and 443 without root: the capability lies on the python that only tlsproxy uses.
# - Docker 20.10 and newer opens all ports to everyone inside a container (net.ipv4.ip_unprivileged_port_start=0), so there
#   the capability is a second way in. It is the only one with `--network host`, older engines and some Kubernetes nodes.
# - With `--cap-drop ALL` add `--cap-add NET_BIND_SERVICE`: the kernel refuses to start (EPERM) a file whose capability is
#   outside the container's set.
# - With `--security-opt no-new-privileges` the file's capability is ignored; the engine's default above does the work.
# The tool that sets it leaves in the same layer. The newest libcap2-bin of the release is wanted, so no version is named.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libcap2-bin \
    && setcap cap_net_bind_service=+ep /opt/tlsproxy/bin/python \
    && apt-get purge -y --auto-remove libcap2-bin \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10443 tlsproxy \
    && useradd --system --uid 10443 --gid tlsproxy --home-dir /var/lib/tlsproxy --shell /usr/sbin/nologin tlsproxy \
    && install -d -o tlsproxy -g tlsproxy -m 0700 /var/lib/tlsproxy \
    && install -d -o tlsproxy -g tlsproxy -m 0755 /run/tlsproxy \
    && install -d -m 0755 /etc/tlsproxy

# A program with a capability ignores OPENSSL_CONF, through which the supervisor gives its workers their TLS groups. So the
# same file becomes the system's own configuration of OpenSSL in here.
RUN ln -sf "$(/opt/tlsproxy/bin/python -c 'from tlsproxy.proxy import openssl; print(openssl.openssl_environment()["OPENSSL_CONF"])')" \
        /usr/lib/ssl/openssl.cnf

ENV PATH=/opt/tlsproxy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1

# By number, so that Kubernetes' runAsNonRoot can check it.
USER 10443:10443
WORKDIR /var/lib/tlsproxy

# Keys and certificates. The folder's owner and mode above are copied into a new named volume.
VOLUME /var/lib/tlsproxy
EXPOSE 80 443

# Finishes what is in flight within server.drain (9.5 s); `docker stop` kills after 10 s.
STOPSIGNAL SIGTERM

# Asks the proxy over its admin socket (admin.socket, found as the proxy finds it): whether a worker serves. With
# admin.socket = "off", or with a configuration that only the proxy's own options name, give the container a health check
# of its own.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 \
    CMD ["tlsproxy", "admin", "status", "--check"]

ENTRYPOINT ["tlsproxy"]
CMD ["run"]
