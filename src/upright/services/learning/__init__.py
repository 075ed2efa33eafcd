"""Learning: which strategy is expected to help, at what cost, and how sure that is.

Pure: no database, no files. `Beta` learns from the first outcome on; a logistic challenger may reorder the first two
strategies once the gate has let it. Nothing here imports scikit-learn until a challenger is trained.
"""

from upright.services.learning.beta import Beta
from upright.services.learning.context import Context
from upright.services.learning.costs import Costs
from upright.services.learning.episode import Attempt, Episode
from upright.services.learning.estimate import Estimate, Prior
from upright.services.learning.learned import Learned
from upright.services.learning.policy import Decision, decide

__all__ = ["Attempt", "Beta", "Context", "Costs", "Decision", "Episode", "Estimate", "Learned", "Prior", "decide"]
