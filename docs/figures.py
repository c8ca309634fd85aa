"""Let sphinx-gallery find figures by their names, because those of the library are made without pyplot."""

from weakref import WeakSet

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

_saved: WeakSet[Figure] = WeakSet()


def _figures(block, block_vars, gallery_conf):
    """Save every figure that a block of a script has bound to a name, each once."""
    paths = []
    for value in block_vars["example_globals"].values():
        if isinstance(value, Figure) and value not in _saved:
            _saved.add(value)
            path = next(block_vars["image_path_iterator"])
            value.savefig(path, dpi=110)
            paths.append(path)
    return figure_rst(paths, gallery_conf["src_dir"])


def _get_sg_image_scraper():
    return _figures
