"""The runner: flow runs of Prefect, executed in this warm process."""
