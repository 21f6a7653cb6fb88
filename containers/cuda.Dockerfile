# snp-onnx for NVIDIA GPUs, which the NVIDIA Container Toolkit brings in. In the checkout's root:
#   docker build --file containers/cuda.Dockerfile --tag snp-onnx:cuda .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" --volume "$PWD:/work" --volume snp-onnx-cache:/cache \
#       snp-onnx:cuda prune model.onnx small.onnx --calibration images/ --convention imagenet --target-macs 0.5 --provider cuda
FROM python:3.13-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY snp_onnx ./snp_onnx
COPY passes ./passes
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# onnxruntime-gpu 1.31 wants CUDA 13 (cudart, cuBLAS, cuFFT, cuRAND, NVRTC) and cuDNN 9: the libraries are the image's own.
FROM nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/snp-onnx
ENV PATH=/opt/snp-onnx/bin:$PATH
COPY requirements/dev.txt containers/cuda.txt /tmp/
COPY --from=wheel /wheels/ /tmp/wheels/
RUN python -m pip install --no-cache-dir --constraint /tmp/dev.txt --constraint /tmp/cuda.txt \
        "$(echo /tmp/wheels/*.whl)[gpu,report]" \
    && rm -r /tmp/wheels /tmp/dev.txt /tmp/cuda.txt \
    && install --directory --mode 1777 /cache /work
# Any user may write here, so that `docker run --user` leaves files that belong to who calls it.
ENV SNP_ONNX_CACHE=/cache
VOLUME /cache
USER 10001
WORKDIR /work
ENTRYPOINT ["snp-onnx"]
CMD ["--help"]
