"""Says whether the running Python satisfies pyproject.toml's ranges: status 0, or 1 with a reason.

Usage: python satisfies.py PYPROJECT [EXTRA ...]

Only the standard library is sure to be there: setup.sh runs this on whatever Python is active.
"""

import importlib.metadata
import sys
import tomllib


def unmet(pyproject, extras):
    """One sentence for each requirement that is not installed or outside its range."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        # transformers and matplotlib need packaging: where it is missing, so are they.
        return ["packaging is not installed"]

    with open(pyproject, "rb") as file:
        project = tomllib.load(file)["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]

    faults = []
    for requirement in map(Requirement, wanted):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            faults.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{requirement.name} is {version}, wanted {requirement.specifier}")
    return faults


if __name__ == "__main__":
    faults = unmet(sys.argv[1], sys.argv[2:])
    if faults:
        print("; ".join(faults))
        sys.exit(1)
