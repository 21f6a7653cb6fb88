# snp-onnx for the CPU. In the checkout's root:
#   docker build --file containers/cpu.Dockerfile --tag snp-onnx .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" --volume snp-onnx-cache:/cache \
#       snp-onnx prune model.onnx small.onnx --calibration images/ --convention imagenet --target-macs 0.5
FROM python:3.13-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY snp_onnx ./snp_onnx
COPY passes ./passes
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.13-slim
COPY requirements/dev.txt /tmp/constraints.txt
COPY --from=wheel /wheels/ /tmp/wheels/
RUN python -m pip install --no-cache-dir --constraint /tmp/constraints.txt \
        "$(echo /tmp/wheels/*.whl)[cpu,report]" \
    && rm -r /tmp/wheels /tmp/constraints.txt \
    && install --directory --mode 1777 /cache /work
# Any user may write here, so that `docker run --user` leaves files that belong to who calls it.
ENV SNP_ONNX_CACHE=/cache
VOLUME /cache
USER 10001
WORKDIR /work
ENTRYPOINT ["snp-onnx"]
CMD ["--help"]
