"""Guardrails: what keeps recoveries from making things worse.

Before a recovery: is it stopped, or on hold (`holds`)? Before an action: how far is it trusted (`trust`), and has it a
place within the limits (`limits`)? These modules decide over counts and touch nothing; `Guard` asks the store for the
counts, and a recovery asks its guard.
"""

from upright.services.guardrails.guard import Guard, Refusal
from upright.services.guardrails.ports import EVERY, Approval, GuardStore, Hold, Switch, TrustSetting

__all__ = ["EVERY", "Approval", "Guard", "GuardStore", "Hold", "Refusal", "Switch", "TrustSetting"]
