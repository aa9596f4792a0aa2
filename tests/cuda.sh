#!/usr/bin/env bash
# Builds with the feature `cuda` where there is neither GPU nor CUDA: the compiler comes as Python packages.
#
#   tests/cuda.sh FOLDER [CARGO'S ARGUMENTS...]      default: build --release -p forethought-trainer
#
# FOLDER takes the packages (1.3 GB) and, in `target`, what is built. It takes about ten minutes on two cores. What comes out
# runs where the driver knows CUDA 13.0, with `LD_PRELOAD=libcuda.so.1` and the folders of libcublas.so.13, libcurand.so.10 and
# libcudart.so.13 in LD_LIBRARY_PATH.
set -euo pipefail
folder=${1:?a folder for the packages}
shift
[ $# -gt 0 ] || set -- build --release -p forethought-trainer
mkdir -p "$folder"
folder=$(realpath "$folder")
cd "$(dirname "$0")/.."
toolkit=$folder/nvidia/cu13

if [ ! -x "$toolkit/bin/nvcc" ]; then
    python3 -m pip install --quiet --no-deps --target "$folder" \
        nvidia-{cublas,cuda-cccl,cuda-crt,cuda-nvcc,cuda-nvrtc,cuda-runtime,nvvm}==13.0.* nvidia-curand==10.4.0.*
fi
# Linkers look for names without a version.
for library in "$toolkit"/lib/lib{cublas,cublasLt,cudart,curand,nvrtc}.so.*; do
    ln -sf "$(basename "$library")" "${library%.so.*}.so"
done
# The driver's own library is on machines with a driver only; what it has is looked up at the start there.
mkdir -p "$toolkit/stubs"
echo | cc -shared -x c -Wl,-soname,libcuda.so.1 -o "$toolkit/stubs/libcuda.so" -

export CUDA_HOME=$toolkit CUDA_PATH=$toolkit CUDA_ROOT=$toolkit CUDA_TOOLKIT_ROOT_DIR=$toolkit
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90} PATH=$toolkit/bin:$PATH LD_LIBRARY_PATH=$toolkit/lib
export RUSTFLAGS="-L native=$toolkit/lib -L native=$toolkit/stubs -C link-arg=-Wl,--unresolved-symbols=ignore-all"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$folder/target}
exec cargo "$@" --features cuda
