"""What connects the services with the outside: store, intake, runner, embedded engines, mail, runbook files."""
