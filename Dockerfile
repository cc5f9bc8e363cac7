# distill on a CPU. Build it, then run any command on the files of the current folder:
#   docker build -t distill .
#   docker run --rm --user "$(id -u)" -v "$PWD:/data" distill stream sections/ --model ac4 --out out.zarr
FROM python:3.11.14-slim-bookworm

# PyTorch's own wheels for the CPU, without several gigabytes of CUDA libraries.
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    NUMBA_CACHE_DIR=/tmp/numba

WORKDIR /opt/distill
COPY constraints.txt ./
RUN pip install --only-binary=:all: -c constraints.txt "torch==$(sed -n 's/^torch==//p' constraints.txt)+cpu"
COPY pyproject.toml README.md LICENSE ./
COPY distill distill
COPY teachers teachers
COPY students students
COPY viz viz
RUN pip install -c constraints.txt ".[teachers]" && distill --version

# Not root: results belong to the user that --user names, or to this one.
RUN useradd --create-home --uid 1000 distill
USER 1000
WORKDIR /data
ENTRYPOINT ["distill"]
CMD ["--help"]
