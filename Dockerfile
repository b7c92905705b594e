# syntax=docker/dockerfile:1
# docker build --tag cyclecontrast .                               for CPUs
# docker build --build-arg TORCH=cuda --tag cyclecontrast:cuda .   for NVIDIA GPUs; run with --gpus all --shm-size 8g
ARG PYTHON=3.11.13
FROM python:${PYTHON}-slim-bookworm

ARG TORCH=cpu
WORKDIR /opt/cyclecontrast
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src ./src
# The default PyTorch for Linux includes CUDA. The CPU build has its own index, and its local version (+cpu) sorts higher.
RUN --mount=type=cache,target=/root/.cache/pip \
    case "${TORCH}" in \
        cpu) set -- --extra-index-url https://download.pytorch.org/whl/cpu ;; \
        cuda) set -- ;; \
        *) echo "TORCH is cpu or cuda, not ${TORCH}" >&2; exit 2 ;; \
    esac; \
    pip install "$@" --constraint constraints.txt ".[timm,onnx,remote]" \
    && useradd --create-home --uid 1000 user

# Mount the folder with the videos: docker run --volume "$PWD:/work". For another user of the host: --user "$(id -u)".
ENV HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /work
VOLUME /work
USER 1000
ENTRYPOINT ["cyclecontrast"]
CMD ["--help"]
