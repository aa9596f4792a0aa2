#!/bin/sh
# Collects what `forethought` needs of this system in the folder $1: the program, the libraries that it and ONNX Runtime
# load, certificates, and a user that is not root.
set -eu

root=$1
copy() {
    for file; do
        mkdir -p "$root$(dirname "$file")"
        cp -L "$file" "$root$file"
    done
}

copy /usr/bin/forethought
onnx=$(find "${FORETHOUGHT_HOME:-/var/lib/forethought}" -name 'libonnxruntime.so*' -type f)
for program in /usr/bin/forethought $onnx; do
    # Lines are `name => path (address)`, and `path (address)` for the loader.
    ldd "$program" | awk '/=> \// { print $3 } $1 ~ /^\// { print $1 }' | while read -r library; do
        copy "$library"
    done
done
copy /etc/ssl/certs/ca-certificates.crt
mkdir -p "$root/etc" "$root/tmp"
chmod 1777 "$root/tmp"
echo 'nonroot:x:65532:65532::/var/lib/forethought:/none' >"$root/etc/passwd"
echo 'nonroot:x:65532:' >"$root/etc/group"
