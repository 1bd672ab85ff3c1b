#!/bin/sh
# image-check.sh BINARY MODELS_DIR [LIBONNXRUNTIME]: runs the CPU image without an engine that builds images. The files
# of its last stage are laid out by closure.sh, as Dockerfile.cpu does, and the server runs from them alone, the way a pod
# would run it:
#
#   root directory    those files, mounted read-only; the model read-only on /mnt/models; /proc, /sys, a small /dev
#   process           number 1 of its own, uid 65532 (then others), no capability, no new privileges
#   flags, variables  the runtimes' own (deploy/runtimes)
#
# For each model of MODELS_DIR (directories with 1/ and expected.json) and the ONNX models of onnx_models.py: health, one
# inference against expected.json, the metrics that deploy/autoscaling asks for, gRPC's greeting; after SIGTERM unready
# and still answering, then exit 0. Needs root and Python 3.11.
set -eu

[ $# -eq 2 ] || [ $# -eq 3 ] || { echo "usage: image-check.sh BINARY MODELS_DIR [LIBONNXRUNTIME]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
if [ "$(id -u)" != 0 ]; then
    echo "skipped: no root here (deploy/check/image-check.sh: the image's files under chroot)"
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT TERM
chmod 0755 "$work"
"$here/closure.sh" "$1" "$work/image" ${3:+"$3"}
# How much of it is there for ONNX models alone.
"$here/closure.sh" "$1" "$work/bare"
python3 "$here/image_check.py" check "$work/image" "$2" "$work/bare" "$work/onnx"
