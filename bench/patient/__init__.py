"""The application that the benchmarks break: Django under gunicorn, on a PostgreSQL of its own."""
