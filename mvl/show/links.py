"""The links that open a notebook on Binder and Colab, in the README and in the notebooks.

All are made from one setting, where the repository is hosted:

    [tool.mvl]
    repository = "owner/name"

of pyproject.toml. `mvl links` writes them wherever they belong, `mvl links OWNER/NAME` changes
the setting first; a new notebook gets its own by the same command. A notebook gets two things:
the badges below its title, and a first code cell that fetches the repository on Colab.
"""

import re
import tomllib
from pathlib import Path
from urllib.parse import quote

from mvl.errors import ConfigError, MvlError
from mvl.files import REPOSITORY, with_section, write_text

BEGIN, END = "<!-- links: begin, written by `mvl links` -->", "<!-- links: end -->"

#: How a paragraph of badges begins, and the id of the cell that fetches the repository: by these,
#: older ones are found and replaced.
_BADGES, _CELL = "[![Open in Binder]", "colab"

_SLUG = re.compile(r"[\w.-]+/[\w.-]+")
_SETTING = re.compile(r'^repository = ".*"$', re.MULTILINE)


def repository(root=REPOSITORY):
    """Where the repository is hosted, as "owner/name".

    Raises:
        ConfigError: pyproject.toml does not say so.
    """
    path = Path(root) / "pyproject.toml"
    settings = tomllib.loads(path.read_text(encoding="utf-8"))
    slug = settings.get("tool", {}).get("mvl", {}).get("repository", "")
    if not _SLUG.fullmatch(slug):
        raise ConfigError(f'{path}: [tool.mvl] repository is {slug!r}, not "owner/name"')
    return slug


def badges(slug, name):
    """Markdown of the two badges that open a notebook.

    Args:
        slug: the repository, "owner/name".
        name: the notebook's file name.
    """
    path = f"notebooks/{name}"
    binder = f"https://mybinder.org/v2/gh/{slug}/HEAD?labpath={quote(path, safe='')}"
    colab = f"https://colab.research.google.com/github/{slug}/blob/HEAD/{path}"
    return (
        f"{_BADGES}(https://mybinder.org/badge_logo.svg)]({binder}) "
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})"
    )


def colab_cell(slug):
    """Source of the first code cell: on Colab it fetches the repository, elsewhere nothing."""
    name = slug.partition("/")[2]
    return (
        "# On Colab, this fetches the repository. Elsewhere it is here, and nothing happens.\n"
        "import sys\n"
        "\n"
        'if "google.colab" in sys.modules:\n'
        f"    !test -d {name} || git clone -q --depth 1 https://github.com/{slug}\n"
        f"    %run {name}/scripts/colab.py"
    )


def linked(slug, root=REPOSITORY):
    """What the files that hold links should be.

    Args:
        slug: the repository, "owner/name".
        root: its folder.

    Returns:
        {path: whole text}, of pyproject.toml, README.md and every notebook.

    Raises:
        MvlError: the setting or a marker is missing, or a notebook cannot be read or does not
            open with its title.
    """
    root = Path(root)
    paths = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    notebooks = {path: _read(path) for path in paths}
    setting, readme = root / "pyproject.toml", root / "README.md"
    text = setting.read_text(encoding="utf-8")
    if not _SETTING.search(text):
        raise ConfigError(f'{setting} has no line [tool.mvl] repository = "owner/name"')
    texts = {setting: _SETTING.sub(f'repository = "{slug}"', text)}

    texts[readme] = with_section(readme, BEGIN, END, _table(notebooks, slug))
    return texts | {path: _with_links(notebooks[path], slug, path.name) for path in notebooks}


def write_links(slug=None, root=REPOSITORY):
    """Bring every link up to date.

    Args:
        slug: where the repository is hosted from now on, "owner/name"; None leaves the setting.
        root: its folder.

    Returns:
        list of the paths that were changed.

    Raises:
        ConfigError: `slug`, or the setting, is not of the form "owner/name".
        MvlError: see `linked`; or a file cannot be written.
    """
    if slug is None:
        slug = repository(root)
    elif not _SLUG.fullmatch(slug):
        raise ConfigError(f"repository {slug!r}: expected OWNER/NAME")
    texts = linked(slug, root)
    changed = [path for path in texts if path.read_text(encoding="utf-8") != texts[path]]
    for path in changed:
        write_text(path, texts[path])
    return changed


def _read(path):
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat has no common class for what a broken file raises
        raise MvlError(f"{path} is no readable notebook: {error}") from error
    first = notebook.cells[0] if notebook.cells else None
    if not first or first.cell_type != "markdown" or not first.source.startswith("# "):
        raise MvlError(f"{path} does not open with its title, '# ...'")
    return notebook


def _with_links(notebook, slug, name):
    """A notebook's file with badges and cell in place of what it had of them."""
    import nbformat

    first, *rest = notebook.cells
    title, *paragraphs = first.source.split("\n\n")
    paragraphs = [text for text in paragraphs if not text.startswith(_BADGES)]
    first.source = "\n\n".join([title, badges(slug, name), *paragraphs])
    cell = nbformat.v4.new_code_cell(colab_cell(slug), id=_CELL)
    notebook.cells = [first, cell, *(cell for cell in rest if cell.id != _CELL)]
    return nbformat.writes(notebook) + "\n"


def _table(notebooks, slug):
    """The README's table: a notebook a row, with what it asks, both from its first cell."""
    lines = ["| notebook | what it asks | open it |", "|---|---|---|"]
    for path, notebook in notebooks.items():
        source = notebook.cells[0].source
        title = source.partition("\n")[0].removeprefix("# ")
        asked = re.search(r"\*\*The question: (.+?)\*\*", source)
        question = asked[1][:1].upper() + asked[1][1:] if asked else ""
        texts = (f"[{path.stem[:2]} {title}](notebooks/{path.name})", question)
        cells = [text.replace("|", "\\|") for text in texts]
        lines.append(f"| {' | '.join(cells)} | {badges(slug, path.name)} |")
    return "\n".join(lines)
