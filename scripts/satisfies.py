"""Says whether the running Python satisfies pyproject.toml's ranges: status 0, or 1 with a reason.

Usage: python satisfies.py PYPROJECT [EXTRA ...]

Only the standard library is sure to be there: setup.sh runs this on whatever Python is active.
"""

import importlib.metadata
import sys
import tomllib


def requirements(pyproject, extras=()):
    """What a project asks for, as `Requirement`s."""
    from packaging.requirements import Requirement

    with open(pyproject, "rb") as file:
        project = tomllib.load(file)["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return [Requirement(line) for line in wanted]


def unmet(requirement):
    """Why a requirement is not met, as a phrase; "" where it is."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version}, wanted {requirement.specifier}"
    return ""


if __name__ == "__main__":
    try:
        faults = [fault for r in requirements(sys.argv[1], sys.argv[2:]) if (fault := unmet(r))]
    except ImportError:
        # transformers and matplotlib need packaging: where it is missing, so are they.
        faults = ["packaging is not installed"]
    if faults:
        print("; ".join(faults))
        sys.exit(1)
