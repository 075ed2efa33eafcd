"""Two workers of eight threads, as many a small shop runs."""

import os

bind = os.environ.get("SHOP_BIND", "127.0.0.1:8000")
workers = int(os.environ.get("SHOP_WORKERS", "2"))
threads = int(os.environ.get("SHOP_THREADS", "8"))
worker_class = "gthread"
timeout = 30
graceful_timeout = 3
keepalive = 5
wsgi_app = "shop.wsgi:application"
control_socket_disable = True
