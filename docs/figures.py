"""Let sphinx-gallery find figures made without pyplot, as all of the library's are."""

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

_saved: set[int] = set()


def _figures(block, block_vars, gallery_conf):
    """Save every figure that a block of a script has bound to a name, each once."""
    paths = []
    for one in block_vars["example_globals"].values():
        if isinstance(one, Figure) and id(one) not in _saved:
            _saved.add(id(one))
            path = next(block_vars["image_path_iterator"])
            one.savefig(path, dpi=110)
            paths.append(path)
    return figure_rst(paths, gallery_conf["src_dir"])


def _get_sg_image_scraper():
    return _figures
