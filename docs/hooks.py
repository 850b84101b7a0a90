"""Pages of the documentation that are made from what already stands beside the code.

Every method's ``card.md`` and every engine's ``README.md`` become a page, followed by the reference of its
public names; the README becomes the first page. A new system therefore needs no change here.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to the site."""
    pages = {"index.md": _rewrite_links((ROOT / "README.md").read_text(encoding="utf-8"))}
    for name in ("CONTRIBUTING", "CHANGELOG"):
        pages[f"{name.lower()}.md"] = (ROOT / f"{name}.md").read_text(encoding="utf-8")
    for card in sorted(SOURCE.glob("tradeoff/methods/*/*/card.md")):
        pages[f"systems/{card.parent.name}.md"] = _page(card)
    for readme in sorted(SOURCE.glob("tradeoff/engines/*/README.md")):
        pages[f"engines/{readme.parent.name}.md"] = _page(readme)
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    for image in sorted((ROOT / "docs" / "images").glob("*")):
        files.append(File.generated(config, f"docs/images/{image.name}", abs_src_path=str(image)))
    return files


def _page(source: Path) -> str:
    """The Markdown beside the code without its front matter, then the package's reference."""
    text = FRONT_MATTER.sub("", source.read_text(encoding="utf-8"))
    module = ".".join(source.parent.relative_to(SOURCE).parts)
    return f"{text.rstrip()}\n\n## Reference\n\n::: {module}\n"


def _rewrite_links(text: str) -> str:
    """Point the README's links to cards, engine pages and images at the pages made from them."""
    text = re.sub(r"src/tradeoff/methods/\w+/(\w+)/card\.md", r"systems/\1.md", text)
    text = re.sub(r"src/tradeoff/engines/(\w+)/README\.md", r"engines/\1.md", text)
    return text.replace("(CONTRIBUTING.md)", "(contributing.md)").replace("(CHANGELOG.md)", "(changelog.md)")
