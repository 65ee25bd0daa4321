# shellcheck shell=bash
# Sourced by run_all.sh and run_tests.sh:   source scripts/setup.sh; set_up [EXTRA ...]
#
# set_up ends in the repository's root with an environment that holds what pyproject.toml asks for
# (and its extras, such as dev), and PYTHON naming its interpreter:
#   - the active one as it is, where it is within pyproject's ranges (conda, Colab, a GPU machine);
#   - else .venv in the repository, with requirements.lock installed into it. It is installed again
#     when the lock changes, and after an installation that was interrupted.
#
# PyPI's torch for Linux is a CUDA build of some gigabytes. On a machine without a GPU, PyTorch's
# own CPU index saves them; pip takes it from its usual variable, for the first run alone:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu ./run_all.sh

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
    echo "$*" >&2
    exit 1
}

# The first Python here that is new enough; nothing is printed where there is none.
find_python() {
    local name
    for name in python3 python python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
}

# What .venv was last completed with: the lock, and the Python that it was installed for.
lock_stamp() {
    "$1" -c 'import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest(), sys.version)' \
        "$ROOT/requirements.lock" 2>/dev/null
}

# Make .venv what the lock says.
install_lock() {
    local venv=$ROOT/.venv stamp=$ROOT/.venv/mvl-lock-stamp base=$1
    PYTHON=$venv/bin/python

    # Two runs started at once must not install into one folder.
    if command -v flock >/dev/null; then
        exec 9<"$ROOT/requirements.lock"
        flock 9 || true # a file system without locks is no reason to stop
    fi
    if [[ ! -f $stamp || $(lock_stamp "$PYTHON") != "$(<"$stamp")" ]]; then
        [[ -n $base ]] || fail "Python 3.11 or newer is needed and no python3 on the PATH is one:" \
            "install it, or activate an environment that has it."
        "$base" -c 'import venv, ensurepip' 2>/dev/null || fail "$base cannot make virtual" \
            "environments: install its venv module (on Debian and Ubuntu: apt install python3-venv)."
        local started=$SECONDS torch
        torch=$(grep -E '^torch==' "$ROOT/requirements.lock")
        echo "Installing requirements.lock into .venv (once; some minutes) ..."
        rm -f "$stamp"
        # A .venv that an interrupted run or an upgraded system left without a working pip.
        if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
            "$base" -m venv --clear "$venv" || fail "$base could not make $venv."
        fi
        # torch alone is resolved, since its CUDA build needs libraries that its CPU build has not.
        "$PYTHON" -m pip install -qq --disable-pip-version-check \
            -c "$ROOT/requirements.lock" "$torch" &&
            "$PYTHON" -m pip install -qq --disable-pip-version-check --no-deps \
                -r "$ROOT/requirements.lock" &&
            "$PYTHON" -m pip install -qq --disable-pip-version-check --no-deps \
                --no-build-isolation -e "$ROOT" ||
            fail "The installation into .venv failed, for the reason that pip gives above;" \
                "run the command again when it is mended."
        lock_stamp "$PYTHON" >"$stamp"
        echo "Installed in $((SECONDS - started)) s."
    fi
    exec 9<&-

    # Packages of another installation on PYTHONPATH would stand before those of the lock.
    unset PYTHONPATH
    export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
}

set_up() {
    # The scripts and the notebooks' kernels do not run in the user's folder.
    if [[ -n ${MVL_DATA_ROOT:-} && $MVL_DATA_ROOT != [/~]* ]]; then
        export MVL_DATA_ROOT=$PWD/$MVL_DATA_ROOT
    fi
    cd "$ROOT"

    local reason
    PYTHON=$(find_python)
    if [[ -n $PYTHON && ${VIRTUAL_ENV:-} != "$ROOT/.venv" ]] &&
        reason=$("$PYTHON" scripts/satisfies.py pyproject.toml "$@"); then
        echo "Using the active environment: $PYTHON"
        export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
    else
        if [[ -n ${reason:-} && -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]]; then
            echo "The active environment will not do ($reason); using .venv instead."
        fi
        install_lock "$PYTHON"
    fi
}
