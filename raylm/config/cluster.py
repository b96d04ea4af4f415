"""The `cluster` section: the Ray cluster that does the work."""

from __future__ import annotations

from pydantic import Field

from raylm.config.section import Section


class ClusterConfig(Section):
    """The Ray cluster that does the work."""

    address: str | None = None
    """`host:port` of an existing cluster, used as it is; None uses the one that `raylm up`
    started for this store, or starts one that ends with the command."""
    num_cpus: int | None = Field(None, ge=1)
    """CPUs that a cluster started here offers; None counts them."""
    object_store_bytes: int = Field(512 * 2**20, ge=80 * 2**20)
    """Shared memory of a cluster started here."""
    dashboard_port: int = Field(0, ge=0, le=65535)
    """Ray's dashboard, on loopback, on a cluster started by `raylm up`; 0 takes a free one."""
