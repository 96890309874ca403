"""Where the charts are: beside the code in a checkout, inside the package in an installed wheel."""

from __future__ import annotations

from pathlib import Path

import caspi
from caspi.errors import UserError

PACKAGE = Path(caspi.__file__).parent


def chart_folder(name: str = "caspi-train") -> Path:
    """The folder of a chart."""
    for folder in (PACKAGE.parents[1] / "charts" / name, PACKAGE / "charts" / name):
        if (folder / "Chart.yaml").is_file():
            return folder
    raise UserError(f"the chart {name} is not in this installation of Caspi; install it from its wheel or a checkout")
