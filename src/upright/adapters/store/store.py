"""Everything that is stored, in one object: the store ports, and what the intake and dispatch need besides."""

from __future__ import annotations

from upright.adapters.store.acceptance import Acceptances
from upright.adapters.store.acknowledgements import Acknowledgements
from upright.adapters.store.alerts import Alerts
from upright.adapters.store.approvals import Approvals
from upright.adapters.store.audit import Audit
from upright.adapters.store.commands import Commands
from upright.adapters.store.database import Database
from upright.adapters.store.directives import Directives
from upright.adapters.store.errors import Errors
from upright.adapters.store.holds import Holds
from upright.adapters.store.instances import Instances
from upright.adapters.store.learning import Learnings
from upright.adapters.store.locks import Locks
from upright.adapters.store.outcomes import Outcomes
from upright.adapters.store.permits import Permits
from upright.adapters.store.recoveries import Recoveries
from upright.adapters.store.relapses import Relapses
from upright.adapters.store.scalings import Scalings
from upright.adapters.store.switches import Switches
from upright.adapters.store.trust import TrustLevels
from upright.adapters.store.watches import Watches


class PostgresStore(
    Acceptances,
    Errors,
    Recoveries,
    Locks,
    Alerts,
    Directives,
    Acknowledgements,
    Instances,
    Commands,
    Outcomes,
    Scalings,
    Watches,
    Learnings,
    Permits,
    Holds,
    Switches,
    TrustLevels,
    Approvals,
    Audit,
    Relapses,
):
    def __init__(self, database: Database, *, instance_ttl_s: float = 60) -> None:
        """`instance_ttl_s`: seconds after its last sync for which a process counts as alive."""
        self._database = database
        self._instance_ttl_s = instance_ttl_s

    async def ping(self) -> None:
        """Raises Unavailable."""
        await self._database.ping()
