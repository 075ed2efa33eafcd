"""What Upright does, on ports that the adapters fill: recoveries, strategies, scoring, dispatch, alerts."""
