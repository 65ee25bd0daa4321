#!/usr/bin/env bash
# Sets up an environment and executes the notebooks of one profile. --help says more.
set -euo pipefail

usage="Usage: ./run_all.sh [--profile NAME] [--only NUMBER | --from NUMBER] [--force] [--help]

Makes .venv unless an active environment will do, executes the notebooks in order, and writes
the executed copies to results/NAME/notebooks. What is unchanged since it last ran well is skipped.

  --profile NAME   smoke (minutes, synthetic), quick, gpu or paper; without it quick, or smoke
                   where there is less than 3 GiB of memory
  --only NUMBER    one notebook alone, such as 03
  --from NUMBER    this notebook and those after it
  --force          run what is unchanged, too
  --help           print this and stop

MVL_DATA_ROOT names the folder that holds Task04_Hippocampus and other MSD tasks, if not data/."

reject() {
    printf '%s\n\n%s\n' "$1" "$usage" >&2
    exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
profile=
only=
from=
arguments=()
while (($#)); do
    case $1 in
        --profile | --only | --from)
            [[ -n ${2:-} && $2 != -* ]] || reject "$1 needs a value."
            printf -v "${1#--}" '%s' "$2"
            shift
            ;;
        --force) arguments+=(--force) ;;
        --help | -h)
            echo "$usage"
            exit 0
            ;;
        *) reject "Unknown option: $1" ;;
    esac
    shift
done
[[ -z $profile || ($profile != */* && -f $here/profiles/$profile.yaml) ]] ||
    reject "Unknown profile: $profile"
[[ -z $only || -z $from ]] || reject "--only and --from exclude each other."
[[ -z $profile ]] || arguments+=(--profile "$profile")
[[ -z $only ]] || arguments+=(--only "$only")
[[ -z $from ]] || arguments+=(--from "$from")

source "$here/scripts/setup.sh"
set_up
exec "$PYTHON" -m mvl run ${arguments[@]+"${arguments[@]}"}
