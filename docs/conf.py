"""The site: ``python -m sphinx -W -n --keep-going docs site``."""

import re
from importlib.metadata import version as version_of
from pathlib import Path

project = "im2col_conv"
author = "the im2col_conv developers"
copyright = author
release = version = version_of("im2col-conv")

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["figures"]

html_theme = "furo"
html_title = "im2col_conv"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_fence_as_directive = ["math"]  # GitHub's way to write a displayed formula
myst_heading_anchors = 4

autodoc_typehints = "none"  # the docstrings say the types
autodoc_member_order = "bysource"
numpydoc_show_class_members = False


def _for_the_site(app, docname, source):
    """Lead links that leave docs/ to the page of the same file; drop the line after a doctest."""
    text = source[0].replace("(../benchmarks/README.md", "(benchmarks.md")
    source[0] = text.replace("\n\n```\n", "\n```\n")


def _let_names_break(app, pagename, templatename, context, doctree):
    """Let the long names in tables break after their underscores."""

    def with_breaks(cell):
        return re.sub(r"(?<=>)[^<>]+", lambda text: text[0].replace("_", "_<wbr>"), cell[0])

    pattern = r'<td>(?:(?!</td>).)*<span class="pre">.*?</td>'
    context["body"] = re.sub(pattern, with_breaks, context.get("body", ""), flags=re.DOTALL)


def _collect_external_links(app, doctree, docname):
    from docutils import nodes  # pytest, which looks for doctests in every module, runs without it

    uris = (node["refuri"] for node in doctree.findall(nodes.reference) if "refuri" in node)
    app.external_links.update(uri for uri in uris if uri.startswith(("http:", "https:")))


def _list_external_links(app, exception):
    if exception is None:
        lines = "".join(f"{uri}\n" for uri in sorted(app.external_links))
        Path(app.outdir, "external-links.txt").write_text(lines)


def _write_explorer(app, exception):
    from im2col_conv import ConvGeometry
    from im2col_conv.explorer import page

    if exception is None and app.builder.format == "html":
        geometry = ConvGeometry.from_shapes((1, 1, 6, 5), (2, 1, 3, 3), stride=2)
        Path(app.outdir, "explorer-page.html").write_text(page(geometry), encoding="utf-8")


def setup(app):
    """List what leads out of the site; Sphinx and MyST themselves check what stays inside."""
    app.external_links = set()
    app.connect("source-read", _for_the_site)
    app.connect("html-page-context", _let_names_break)
    app.connect("doctree-resolved", _collect_external_links)
    app.connect("build-finished", _list_external_links)
    app.connect("build-finished", _write_explorer)
