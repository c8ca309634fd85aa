"""Make committed results small: ``python docs/thin.py docs/results``.

Figures keep 32 colours, in which lines keep theirs and faint grids may vanish. JSON files above 85 kB lose the long
arrays that no page shows; the key ``thinned`` names them and the command that makes the whole file again.
"""

import json
import re
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from estimators.files import write_bytes
from validation.tables.storage import write_json

LARGEST, COLOURS = 85_000, 32
# Which arrays of a table may go, by its name; "rows.runs" is the key "runs" of every row.
ARRAYS = {
    "algorithms": ("cells",),
    "forecast": ("levels",),
    "kinematics": ("rows.counts",),
    "koopman-spectrum": ("spectra",),
    "lottery-tickets": ("cells.points",),
    "oracle": ("rows.runs",),
    "retuned": ("cells",),
}


def without(content, key):
    """Return the content of a JSON file without one key, of itself or of every entry of a list."""
    name, _, inner = key.partition(".")
    if not inner:
        return {other: value for other, value in content.items() if other != name}
    entries = [{other: value for other, value in entry.items() if other != inner} for entry in content[name]]
    return content | {name: entries}


def thin_table(path):
    """Drop the long arrays of a JSON file that is too large."""
    if path.stat().st_size <= LARGEST:
        return
    arrays = ARRAYS[path.stem]
    content = json.loads(path.read_text())
    for key in arrays:
        content = without(content, key)
    command = re.search(r"Made by `(.+?)`", path.with_suffix(".md").read_text())[1]
    write_json(path, content | {"thinned": {"left out": list(arrays), "command": command}})


def thin_figure(path):
    """Keep few colours in a figure that has many."""
    image = Image.open(path)
    if image.mode == "P":
        return
    buffer = BytesIO()
    opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    few = opaque.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # thin lines keep their colour
    few.save(buffer, "PNG", optimize=True)
    if buffer.tell() < path.stat().st_size:
        write_bytes(path, buffer.getvalue())


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for table in sorted(folder.rglob("*.json")):
        thin_table(table)
    for figure in sorted(folder.rglob("*.png")):
        thin_figure(figure)
