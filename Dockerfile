# A pool for everything that is in one pool.toml, on the CPU:
#
#   docker build --tag onecopy .
#   docker run --rm --read-only --volume "$PWD/models:/srv:ro" --publish 127.0.0.1:5555:5555 onecopy
#
# /srv has pool.toml and what it names. For clients outside of the container pool.toml says
# listen = ["tcp://0.0.0.0:5555"] and keys = "./keys", see docs/security.md; inside, `docker exec … onecopy status`.
# What models need besides torch goes into an image on top of this one.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# Where torch comes from: this index has builds for the CPU alone, which are a tenth of the size.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# The slots' allocator is plain C.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# First, and by itself: what is built below changes more often, and must not draw another build of torch in.
RUN pip install --index-url "$TORCH_INDEX" "torch>=2.11,<2.16"
WORKDIR /build
COPY pyproject.toml setup.py README.md LICENSE ./
COPY protocol protocol
COPY pool pool
COPY workers workers
RUN pip install .

FROM python:${PYTHON}-slim
COPY --from=build /venv /venv
# Sockets and evicted weights; where the container is read-only, sockets lie in /dev/shm and nothing is evicted.
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_RUNTIME_DIR=/run/onecopy \
    ONECOPY_CACHE_DIR=/var/cache/onecopy
RUN useradd --uid 1000 --create-home onecopy \
    && install --directory --owner onecopy --group onecopy --mode 0700 /run/onecopy /var/cache/onecopy
USER onecopy
WORKDIR /srv
EXPOSE 5555
# The name is fixed so that the check of its health finds the pool, whatever pool.toml calls it.
ENTRYPOINT ["onecopy", "serve", "--name", "default"]
CMD ["pool.toml"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["onecopy", "status", "--json"]
