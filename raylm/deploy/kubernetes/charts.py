"""Where the charts are: in the package where it was installed, beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

from raylm.deploy.kubernetes.values import Chart
from raylm.errors import HostError

_PLACES = (Path(__file__).parent / "charts", Path(__file__).parents[3] / "helm")


def chart_folder(chart: Chart) -> Path:
    """The folder of a chart.

    Raises:
        HostError: this installation has none.
    """
    for place in _PLACES:
        if (place / chart / "Chart.yaml").is_file():
            return place / chart
    raise HostError(
        f"this installation of raylm has no chart {chart}",
        code="charts-missing",
        hint="install raylm from its wheel, or work in a checkout",
    )
