"""Where the charts are: beside the package, in a checkout."""

from __future__ import annotations

from pathlib import Path

from raylm.deploy.kubernetes.values import Chart
from raylm.errors import HostError

_FOLDER = Path(__file__).parents[3] / "helm"


def chart_folder(chart: Chart) -> Path:
    """The folder of a chart.

    Raises:
        HostError: this installation has none.
    """
    if (_FOLDER / chart / "Chart.yaml").is_file():
        return _FOLDER / chart
    raise HostError(
        f"this installation of raylm has no chart {chart}",
        code="charts-missing",
        hint="work in a checkout of raylm, whose helm/ has it; "
        "`raylm deploy render --values` needs none",
    )
