"""Takes pages that live elsewhere in the repository into the site, and turns links between files into the site's links.

On GitHub a link such as `../perf/README.md` works as it is written; on the site that page is `measuring.html`.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE": "LICENSE.txt",
    "perf/README.md": "measuring.md",
    **{path: path for path in ("protos/kserve_v2.proto", "protos/arctic_inference.proto")},
    **{
        path.relative_to(ROOT).as_posix(): path.relative_to(ROOT / "perf").as_posix()
        for path in ROOT.glob("perf/results/**/*.svg")
    },
}
"""By path in the repository, the path in the site."""
_LINK = re.compile(r"(\]\(|src=\")([^)#\"\s:]+)((?:#[^)\"\s]*)?[)\"])")


def on_files(files: Files, config: Any) -> Files:
    """Add the files from elsewhere."""
    for path, uri in ELSEWHERE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point each link at the place of its file in the site; what is not in the site stays, and the build fails."""
    here = page.file.src_uri
    sources = {uri: path for path, uri in ELSEWHERE.items()}
    source = sources.get(here, f"docs/{here}")

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        uri = ELSEWHERE.get(target) or target.removeprefix("docs/")
        return link[1] + posixpath.relpath(uri, posixpath.dirname(here) or ".") + link[3]

    return _LINK.sub(moved, markdown)
