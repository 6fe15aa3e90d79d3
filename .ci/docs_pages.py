"""A hook of mkdocs: pages that are not files in docs. README.md, CONTRIBUTING.md, CHANGELOG.md and the systems' results
stay where people look for them; the reference has a page for each package, a gallery all pictures of the systems. A
tutorial's page shows its notebook as it was last executed (make tutorials).

A link from one of them to another leads to its page; one to a file that is no page becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # file in the repository: page
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/results/systems/README.md": "results.md",
}
PACKAGES = ("functional", "layers", "models", "training", "evaluation", "backends", "interop")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Under Systems, behind the first page, one for each."""
    (systems,) = [part["Systems"] for part in config.nav if "Systems" in part]
    systems[1:1] = [f"systems/{page.name}" for page in sorted((ROOT / "docs/systems").glob("*.md"))]
    return config


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "api/hybridops.md", content="# hybridops\n\n::: hybridops\n"))
    for name in PACKAGES:
        files.append(File.generated(config, f"api/{name}.md", content=f"# hybridops.{name}\n\n::: hybridops.{name}\n"))
    files.append(File.generated(config, "gallery.md", content=gallery()))
    exporter = MarkdownExporter(preprocessors=[CoalesceStreamsPreprocessor])
    for notebook in (ROOT / "docs/tutorials").glob("*.ipynb"):
        text, resources = exporter.from_filename(notebook, {"unique_key": notebook.stem})
        title, rest = text.split("\n", 1)
        text = f"{title}\n\n[This page as a notebook]({notebook.name}){{: download }}\n{rest}"
        files.append(File.generated(config, f"tutorials/{notebook.stem}.md", content=text))
        for name, picture in resources["outputs"].items():
            files.append(File.generated(config, f"tutorials/{name}", content=picture))
    return files


def gallery() -> str:
    """Each system's pictures, under the name of its page, as the pages show them."""
    parts = ["# Gallery\n\nWhat the systems' runs draw.\n"]
    for page in sorted((ROOT / "docs/systems").glob("*.md")):
        text = page.read_text()
        pictures = re.findall(r"!\[([^\]]*)\]\((pictures/[^)]+)\)", text)
        if pictures:
            title = text.split("\n", 1)[0].removeprefix("# ")
            parts.append(f"\n## [{title}](systems/{page.name})\n")
            parts += [f"\n![{words}](systems/{path})\n\n{words}\n" for words, path in pictures]
    return "".join(parts)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    pages = {source: target for target, source in PAGES.items()}
    here = pages.get(page.file.src_uri, f"docs/{page.file.src_uri}")  # in the repository

    def link(match: re.Match[str]) -> str:
        picture, words, target, anchor = match.groups()
        if "://" in target or page.file.src_uri.startswith(("api/", "gallery")):
            return match.group(0)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        found = PAGES.get(path) or PAGES.get(f"{path}/README.md") or path.removeprefix("docs/")
        if not here.startswith("docs/tutorials/"):  # whose pages link to the notebook itself, to download
            found = found.replace(".ipynb", ".md")
        if files.get_file_from_path(found) is None:
            return words if not picture else ""
        to = posixpath.relpath(found, posixpath.dirname(page.file.src_uri) or ".")
        return f"{picture}[{words}]({to}{anchor or ''})"

    return _LINK.sub(link, markdown)
