"""What Upright talks about, without any I/O: events, incidents, runbooks, directives, verdicts."""
