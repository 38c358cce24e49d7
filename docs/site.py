"""What mkdocs makes of the pages besides: its front page, and links that lead out of docs/."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)")


def on_files(files: Files, config: Any) -> Files:
    """The README is the front page; the changelog is a page, too."""
    front = (ROOT / "README.md").read_text()
    # What the README links to is here, one level up, or out of docs/.
    front = re.sub(r"\]\((?!https?:|docs/)([^)]+)\)", r"](../\1)", front).replace("](docs/", "](")
    front = front.replace("](../CHANGELOG.md)", "](changelog.md)")
    changes = (ROOT / "CHANGELOG.md").read_text()
    for name, text in (("index.md", front), ("changelog.md", changes)):
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Name a file of the repository where a page links to one."""
    return OUTSIDE.sub(r"\1 (`\2`)", markdown)
