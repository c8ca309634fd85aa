"""Settings of the documentation, built by ``make docs``."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # figures.py, and the packages as they are here

project = "pruning-limits"
author = "the authors of pruning-limits"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
    "sphinx_gallery.gen_gallery",
]
# Scripts are no pages; "examples" is what sphinx-gallery makes of them.
exclude_patterns = ["_build", "gallery", "examples/*.ipynb", "examples/*.py"]

html_theme = "furo"
html_title = "pruning-limits"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
maximum_signature_line_length = 100

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "filename_pattern": "plot_",
    "image_scrapers": ("figures",),
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "show_memory": False,
    "show_signature": False,
    "download_all_examples": False,
    "write_computation_times": False,
    "min_reported_time": 3600,  # the time it took here says little of the time it takes elsewhere
}


def source_as_field(app, what, name, obj, options, lines):
    """Turn the paragraph ``Source: ...`` of a docstring into a field beside parameters and returns."""
    text = "\n".join(lines)
    match = re.search(r"^Source:((?:.|\n(?!\n))*)", text, re.MULTILINE)
    if match:
        field = ":Source: " + " ".join(match[1].split())
        lines[:] = [*text[: match.start()].splitlines(), "", field, "", *text[match.end() :].splitlines()]


def scripts_as_pages(app, name, content):
    """Let links to the scripts of the gallery, which lead somewhere in plain Markdown too, lead to their pages."""
    pages = re.sub(r"gallery/(plot_\w+)\.py\)", r"examples/\1.rst)", content[0])
    content[0] = pages.replace("gallery/GALLERY_HEADER.rst)", "examples/index.rst)")


def setup(app):
    """Read ``Source`` before napoleon reads the other sections."""
    app.connect("autodoc-process-docstring", source_as_field, priority=400)
    app.connect("source-read", scripts_as_pages)
