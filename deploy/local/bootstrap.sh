#!/bin/sh
# Makes or refreshes .venv: a virtual environment of this machine's Python with uv and everything uv.lock names.
# Run from the repository's root, by make. PYTHON names the interpreter; otherwise the first suitable one is taken.
# Every failure is one sentence on standard error and exit code 2.
set -eu

# An activated environment or a user's own uv setting must not redirect the installation.
unset VIRTUAL_ENV UV_PROJECT_ENVIRONMENT UV_PYTHON PYTHONHOME PYTHONPATH
export UV_PYTHON_DOWNLOADS=never PIP_DISABLE_PIP_VERSION_CHECK=1

oldest="3.11"
venv=.venv
log=$venv/bootstrap.log

fail() {
    printf 'make: %s\n' "$1" >&2
    exit 2
}

suitable() {
    "$1" -c "import sys; raise SystemExit(sys.version_info < (${oldest%.*}, ${oldest#*.}))" >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null 2>&1 || fail "there is no Python at PYTHON=$PYTHON."
        suitable "$PYTHON" || fail "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1), and Tollhouse needs $oldest or newer."
        return
    fi
    found=""
    for PYTHON in python3 python3.13 python3.12 python3.11 python; do
        command -v "$PYTHON" >/dev/null 2>&1 || continue
        suitable "$PYTHON" && return
        found="$("$PYTHON" --version 2>&1) is too old"
    done
    fail "${found:-there is no Python}: install Python $oldest or newer, or name one with PYTHON=/path/to/python3."
}

# The log's last line of substance, as the reason.
installed() {
    "$@" >>"$log" 2>&1 && return
    if grep -qiE 'resolve|connect|timed? ?out|network|proxy|certificate|unreachable|Name or service|from versions: none' "$log"; then
        fail "the package index cannot be reached or is empty; check the network, proxy or mirror settings (details: $log)."
    fi
    if grep -qi 'no space left' "$log"; then
        fail "the disk is full (details: $log)."
    fi
    fail "installing failed: $(grep -v '^ *$' "$log" | tail -n 1) (details: $log)."
}

[ -f uv.lock ] || fail "uv.lock is not here: run make in the repository's root."
[ -w . ] || fail "$(pwd) is read-only for $(id -un): make needs to create .venv here."

if ! suitable "$venv/bin/python" || { [ -n "${PYTHON:-}" ] && [ ! -f "$venv/.synced" ]; }; then
    find_python
    "$PYTHON" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
        fail "$("$PYTHON" --version) lacks the venv module: install it (on Debian and Ubuntu: apt install python3-venv)."
    echo "Making .venv with $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear "$venv" || fail "$PYTHON could not make a virtual environment in $(pwd)/$venv."
fi
(: >"$log") 2>/dev/null || fail "$(pwd)/$venv is read-only for $(id -un): delete it, or run as its owner."

wanted=$(awk '/^name = "uv"$/ { getline; gsub(/[^0-9.]/, ""); print }' uv.lock)
if [ "$("$venv/bin/uv" --version 2>/dev/null | cut -d' ' -f2)" != "$wanted" ]; then
    echo "Installing uv $wanted"
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || installed "$venv/bin/python" -m ensurepip
    installed "$venv/bin/python" -m pip install --quiet --retries 2 "uv==$wanted"
fi
echo "Installing what uv.lock names"
installed "$venv/bin/uv" sync --frozen --quiet --compile-bytecode --python "$venv/bin/python"
touch "$venv/.synced"
