#!/usr/bin/env bash
# Builds the hot modules with bounds, None and initialisation checks, and with gcc's address and undefined behaviour
# sanitizers, into build/checked; or runs Python on them.
#
#   tests/fuzz/checked.sh build                      PYTHON is the interpreter that has Cython and the dependencies
#   tests/fuzz/checked.sh run tests/fuzz/run.py ... a program on that build; a finding ends it with a report
#   tests/fuzz/checked.sh prove                      puts a read before and one behind a buffer into copies, and expects
#                                                    that each ends a run
#
# The sources are copied first: Cython does not make C again only because the checks have changed.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}

build() { # folder
    local at=$1
    (
        cd "$at/tree"
        HTTP_CAPTURE_EXTENSIONS=require HTTP_CAPTURE_CHECKED=1 \
            CFLAGS="-fsanitize=address,undefined -fno-omit-frame-pointer -g1" \
            LDFLAGS="-fsanitize=address,undefined" \
            "$PYTHON" setup.py -q build_ext --build-lib ../lib
    ) >"$at/build.log" 2>&1 || { cat "$at/build.log" >&2; exit 1; }
    local folder
    for folder in capture guard config; do
        (cd "$at/tree" && find "$folder" \( -name '*.py' -o -name '*.toml' \) -exec cp --parents {} ../lib/http_capture/ \;)
    done
}

copy() { # folder
    rm -rf "$1"
    mkdir -p "$1/tree" "$1/lib"
    cp -r capture guard config setup.py pyproject.toml README.md LICENSE "$1/tree/"
    find "$1/tree" -name '*.so' -delete
}

run() { # folder, arguments of Python
    local at=$1
    shift
    # PYTHONMALLOC: each object its own allocation, so that a read behind it is seen. Python's leaks are its own.
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
        ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=16:abort_on_error=0:exitcode=99:allocator_may_return_null=1 \
        UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1:exitcode=99 \
        PYTHONMALLOC=malloc HTTP_CAPTURE_TESTED=compiled PYTHONPATH="$at/lib" "$PYTHON" "$@"
}

case ${1:-} in
build)
    copy build/checked
    build build/checked
    ;;
run)
    shift
    run build/checked "$@"
    ;;
prove)
    # Both through pointers, so that only the sanitizer can find them: 1: a byte behind the buffer; 2: a copy of more.
    at=build/checked-proof
    copy $at
    sed -i 's|^            ethertype = u16(octets, start + 12)$|&\n            self.layers = octets[end + 1]|' \
        $at/tree/capture/decode.py
    cmp -s capture/decode.py $at/tree/capture/decode.py && { echo 'checked: the place for the first fault is gone' >&2; exit 1; }
    sed -i 's|return self._feed(copied(octets_in(buffer), start, end), |return self._feed(copied(octets_in(buffer), start, end + 4096), |' \
        $at/tree/capture/http/parser.py
    cmp -s capture/http/parser.py $at/tree/capture/http/parser.py && { echo 'checked: the place for the second fault is gone' >&2; exit 1; }
    build $at
    for stage in decode parser; do
        if run $at tests/fuzz/run.py --stage $stage --count 20000 --out $at/found >$at/$stage.log 2>&1; then
            echo "checked: the fault in $stage was not found" >&2
            exit 1
        fi
        echo "checked: the fault in $stage is found: $(grep -m1 -E 'IndexError|AddressSanitizer|runtime error' $at/$stage.log)"
    done
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 64
    ;;
esac
