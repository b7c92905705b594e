# syntax=docker/dockerfile:1
# docker build --tag cyclecontrast .                               for CPUs
# docker build --build-arg TORCH=cuda --tag cyclecontrast:cuda .   for NVIDIA's GPUs; run it with --gpus all --shm-size 8g
ARG PYTHON=3.11.13
FROM python:${PYTHON}-slim-bookworm

ARG TORCH=cpu
WORKDIR /opt/cyclecontrast
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src ./src
# PyPI's PyTorch comes with CUDA; PyTorch's own index has the small build, whose version sorts above it.
RUN --mount=type=cache,target=/root/.cache/pip \
    case "${TORCH}" in \
        cpu) set -- --extra-index-url https://download.pytorch.org/whl/cpu ;; \
        cuda) set -- ;; \
        *) echo "TORCH is cpu or cuda, not ${TORCH}" >&2; exit 2 ;; \
    esac; \
    pip install "$@" --constraint constraints.txt ".[timm,onnx,remote]" \
    && useradd --create-home --uid 1000 user

# Videos in, runs out: docker run --volume "$PWD:/work". Other users of the host: --user "$(id -u)".
ENV HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /work
VOLUME /work
USER 1000
ENTRYPOINT ["cyclecontrast"]
CMD ["--help"]
