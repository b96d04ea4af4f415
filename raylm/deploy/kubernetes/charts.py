"""Where the charts and KubeRay's manifests are: in a checkout, or inside an installed package."""

from __future__ import annotations

from pathlib import Path

from raylm.deploy.kubernetes.values import Chart
from raylm.errors import HostError

CHECKOUT = Path(__file__).parents[3]
PACKAGED = Path(__file__).parent / "packaged"
"""Laid out as a checkout; made when a wheel is built (pyproject.toml)."""


def chart_folder(chart: Chart) -> Path:
    """The folder of a chart.

    Raises:
        HostError: this installation has none.
    """
    return _folder(f"helm/{chart}", "Chart.yaml")


def kuberay_folder() -> Path:
    """The folder of KubeRay's definitions and operator.

    Raises:
        HostError: this installation has none.
    """
    return _folder("k8s/kuberay", "SHA256SUMS")


def _folder(name: str, file: str) -> Path:
    # In a checkout what is worked on counts.
    for root in (CHECKOUT, PACKAGED):
        if (root / name / file).is_file():
            return root / name
    raise HostError(
        f"this installation of raylm has no {name}",
        code="charts-missing",
        hint="install raylm from a wheel, or work in a checkout; "
        "`raylm deploy render --values` needs no chart",
    )
