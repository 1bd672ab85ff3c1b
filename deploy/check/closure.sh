#!/bin/sh
# closure.sh BINARY DEST [LIBONNXRUNTIME [LIBRARY...]]: lays into DEST the whole file system of an image: the server,
# the library that ONNX models need, the shared libraries that ldd names for both, those of the C library that are named
# besides (libdl.so.2), the loader, the certificate authorities, and the few files that name the user. Dockerfile.cpu,
# Dockerfile.cuda and image-check.sh all use it, so what is checked is what is shipped.
set -eu

[ $# -ge 2 ] || { echo "usage: closure.sh BINARY DEST [LIBONNXRUNTIME [LIBRARY...]]" >&2; exit 2; }
binary=$1
dest=$2
onnxruntime=${3:-}
shift "$(($# < 3 ? $# : 3))"
mkdir -p "$dest"
[ -z "$(ls -A "$dest")" ] || { echo "closure.sh: $dest is not empty" >&2; exit 2; }

install -D -m 0755 "$binary" "$dest/usr/local/bin/tensorgate"
# The name under which it reads Triton's flags.
ln -s tensorgate "$dest/usr/local/bin/tritonserver"
# The server looks for it beside itself. The licences of what it is made of lie beside the file (.ci/onnxruntime.py).
if [ -n "$onnxruntime" ]; then
    install -D -m 0755 "$onnxruntime" "$dest/usr/local/bin/libonnxruntime.so"
    for terms in LICENSE ThirdPartyNotices.txt; do
        found=$(dirname "$onnxruntime")/$terms
        if [ -e "$found" ]; then install -D -m 0644 "$found" "$dest/usr/share/doc/onnxruntime/$terms"; fi
    done
fi

# ldd prints `name => path (address)` for a library and `path (address)` for the loader; the vdso has no file.
libraries() {
    listing=$(ldd "$1" 2>&1) || case $listing in
        *"not a dynamic executable"*) listing= ;;
        *) echo "closure.sh: ldd: $listing" >&2; exit 1 ;;
    esac
    if printf '%s\n' "$listing" | grep 'not found' >&2; then
        echo "closure.sh: a library of $1 is missing" >&2
        exit 1
    fi
    printf '%s\n' "$listing" | sed -n -e 's/.*=> *\(\/[^ ]*\) (.*/\1/p' -e 's/^[[:space:]]*\(\/[^ ]*\) (.*/\1/p' | sort -u
}
found=$(libraries "$binary")
if [ -n "$onnxruntime" ]; then found="$found $(libraries "$onnxruntime")"; fi
# What a driver that is mounted into the container needs of the C library. All lie where the C library does.
libc=$(printf '%s\n' $found | grep '/libc\.so\.6$' | head -n 1)
for library in "$@"; do
    [ -e "${libc%/*}/$library" ] || { echo "closure.sh: there is no $library beside ${libc:-a C library}" >&2; exit 1; }
    found="$found ${libc%/*}/$library"
done

# At the paths where they lie here: the loader looks there by itself, without a cache file. Copied, not linked.
for library in $found; do
    install -D -m 0755 "$library" "$dest$library"
    # Their licences ask to travel with them; Debian knows whose they are, by either name of /lib.
    if command -v dpkg-query >/dev/null; then
        for name in "$library" "/usr$library"; do
            package=$(dpkg-query -S "$name" 2>/dev/null | head -n 1 | cut -d : -f 1) || true
            terms=/usr/share/doc/${package:-none}/copyright
            if [ -e "$terms" ]; then install -D -m 0644 "$terms" "$dest$terms"; fi
        done
    fi
done

# Where a model changes the case of texts, as scikit-learn's text vectorizers do, ONNX Runtime asks for the locale that
# the model names, and for en_US.UTF-8 where it names none. Letters of C.utf8 are those of all languages; what else
# differs it does not use.
locale=/usr/lib/locale/C.utf8
if [ -n "$onnxruntime" ] && [ -d "$locale" ]; then
    mkdir -p "$dest/usr/lib/locale"
    cp -RL "$locale" "$dest$locale"
    ln -s C.utf8 "$dest/usr/lib/locale/en_US.utf8"
elif [ -n "$onnxruntime" ]; then
    echo "closure.sh: no $locale here: ONNX models that change the case of texts will not load" >&2
fi

# Whom a collector's certificate is checked with: a server that sends traces by https does not start without any.
authorities=
for file in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem; do
    if [ -z "$authorities" ] && [ -s "$file" ]; then authorities=$file; fi
done
if [ -z "$authorities" ]; then
    echo "closure.sh: no file of certificate authorities here; Debian has it in the package ca-certificates" >&2
    exit 1
fi
install -D -m 0644 "$authorities" "$dest/etc/ssl/certs/ca-certificates.crt"
terms=/usr/share/doc/ca-certificates/copyright
if [ -e "$terms" ]; then install -D -m 0644 "$terms" "$dest$terms"; fi

mkdir -p "$dest/etc" "$dest/mnt/models"
cat >"$dest/etc/passwd" <<'END'
root:x:0:0:root:/:/sbin/nologin
nonroot:x:65532:65532:nonroot:/:/sbin/nologin
END
cat >"$dest/etc/group" <<'END'
root:x:0:
nonroot:x:65532:
END
# What the C library asks for names; without the file it would ask the network before /etc/hosts.
echo 'hosts: files dns' >"$dest/etc/nsswitch.conf"
chmod 0644 "$dest/etc/passwd" "$dest/etc/group" "$dest/etc/nsswitch.conf"
# For a server that is given a writable /tmp; it needs none.
mkdir -m 1777 "$dest/tmp"

# The same files give the same layer.
find "$dest" -exec touch -h -d "@${SOURCE_DATE_EPOCH:-0}" {} +
