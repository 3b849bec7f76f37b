"""`report.html`: one self-contained page that shows what a run did, from its `config.json`, `records.jsonl`
and, where a recipe wrote one, `heatmaps.json` alone.

    data.py      the folder -> series, groups, curves        verdict.py   -> sentences      figures.py, members.py, heatmaps.py   -> pictures
    page.py      -> HTML (markup.py escapes), with page.css and page.js; plotly.js stands inside, so that the page opens without a network

The page is made for whatever was logged: recipes of this package, or any loop with a `Recorder`.
"""

from __future__ import annotations

import os
from pathlib import Path

from entreg import disk
from entreg.report import data, page

FILE = "report.html"


def write(folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a run folder, whole or not at all, and return its path.

    Raises: `ValueError` when the folder holds neither `config.json` nor `records.jsonl`, `ImportError` without plotly, `OSError` of the system.

    >>> import tempfile
    >>> from entreg.record import Recorder
    >>> with tempfile.TemporaryDirectory() as folder, Recorder(folder) as recorder:
    ...     recorder.log(1, loss=0.7, entropy=1.1)
    ...     text = write(folder).read_text(encoding="utf-8")
    >>> "Loss 0.7 (one seed: no interval)." in text
    True
    """
    run = Path(folder)
    html = page.render(data.load(run), run.resolve(), _plotly())
    disk.replace_file(run / FILE, html.encode("utf-8", errors="replace"))
    return run / FILE


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError("reports need plotly: pip install 'entreg[run]'") from error
    return str(get_plotlyjs())
