"""MkDocs hook: the pages of the site that are not in docs/, and links that leave docs/.

`mkdocs build --strict` writes the site to build/site; mkdocs.yml has its navigation.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
COPIED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
API = {  # page: (title, modules)
    "raa": ("RAA", ["raa", "models.dense_raa"]),
    "arr": ("ARR", ["arr", "record"]),
    "nnx": ("Flax NNX", ["nnx"]),
    "activations": ("Activations", ["activations"]),
    "models": ("Models", ["models"]),
    "weights": (
        "Weights",
        [
            "torch_weights",
            "convert",
            "inference",
            "stablehlo",
            "runtime.weight_files",
            "runtime.hub",
        ],
    ),
    "config": ("Config", ["config", "config_file", "fields"]),
    "tasks": ("Tasks", ["tasks", "tasks.base", "tasks.arrays"]),
    "training": ("Training", ["experiment", "training.step", "training.optim", "training.state"]),
    "errors": ("Errors", ["runtime.errors"]),
}
LINK = re.compile(r"(!?)\[([^]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config) -> Files:
    pages = {"index.md": home()}
    pages |= {page: (ROOT / source).read_text() for source, page in COPIED.items()}
    pages |= {f"api/{page}.md": api(page) for page in API}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    source = page.file.src_uri
    is_of_root = source == "index.md" or source in COPIED.values()
    folder = "" if is_of_root else "docs"
    return LINK.sub(lambda link: relink(link, folder, source), markdown)


def home() -> str:
    """What README says before its table of results, and its citation."""
    readme = (ROOT / "README.md").read_text()
    first, _, rest = readme.partition("\n## Status\n")
    return f"{first}\n## Citation{rest.partition('## Citation')[2]}"


def api(page: str) -> str:
    directives = "\n".join(f"::: dnrt_jax.{module}\n" for module in modules(page))
    return f"# {API[page][0]}\n\n{directives}"


def modules(page: str) -> list[str]:
    architectures = [f"models.{name}" for name in architecture_files()] if page == "models" else []
    return API[page][1] + architectures


def architecture_files() -> list[str]:
    folder = ROOT / "dnrt_jax" / "models"
    return sorted(p.stem for p in folder.glob("*.py") if "\nMODELS = " in p.read_text())


def relink(link: re.Match[str], folder: str, source: str) -> str:
    """A link of a file in `folder`, as one of the page `source`; its text alone if the site does
    not have the target."""
    image, text, path, anchor = link.groups()
    if re.match(r"\w+:", path):
        return link[0]
    target = PurePosixPath(normpath(f"{folder}/{path}" if folder else path))
    if target.parts[0] == "docs":
        found = str(target.relative_to("docs"))
    elif str(target) in COPIED:
        found = COPIED[str(target)]
    else:
        module = ".".join(target.with_suffix("").parts[1:])
        page = next((page for page in API if module in modules(page)), None)
        if target.parts[0] != "dnrt_jax" or page is None:
            return text
        found, anchor = f"api/{page}.md", f"#dnrt_jax.{module}"
    return f"{image}[{text}]({relpath(found, PurePosixPath(source).parent)}{anchor or ''})"
