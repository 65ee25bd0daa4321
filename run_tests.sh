#!/usr/bin/env bash
# Sets up an environment and runs every check. --help says more.
set -euo pipefail

usage="Usage: ./run_tests.sh [--slow] [--help]

Makes .venv unless an active environment will do; then ruff (lint and format), codespell, the
generated pages, the tests, and the notebooks of the smoke profile. Ends with status 0 only if all of
them passed.

  --slow   also the tests that take more than some seconds
  --help   print this and stop"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
slow=()
while (($#)); do
    case $1 in
        --slow) slow=(--slow) ;;
        --help | -h)
            echo "$usage"
            exit 0
            ;;
        *)
            printf '%s\n\n%s\n' "Unknown option: $1" "$usage" >&2
            exit 2
            ;;
    esac
    shift
done

source "$here/scripts/setup.sh"
set_up dev

# Each check runs even where one before it failed: a report is more use whole.
failed=()
check() {
    local name=$1
    shift
    echo "== $name"
    "$@" || failed+=("$name")
}
# Make again what is made of results, and see that it is what is committed.
generated() {
    "$PYTHON" scripts/reliability.py && "$PYTHON" scripts/settling.py && "$PYTHON" scripts/pages.py &&
        git diff --exit-code -- README.md docs benchmarks/README.md
}
check "ruff check" "$PYTHON" -m ruff check .
check "ruff format" "$PYTHON" -m ruff format --check .
check "codespell" "$PYTHON" -m codespell_lib
check "generated pages" generated
# A process for each core, up to four, and so one thread for each: they share the machine.
check "pytest" env OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -n logical --maxprocesses 4 \
    --dist loadfile --durations=10 ${slow[@]+"${slow[@]}"}
check "notebooks (smoke)" ./run_all.sh --profile smoke

if ((${#failed[@]})); then
    printf 'FAILED: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "All checks passed."
