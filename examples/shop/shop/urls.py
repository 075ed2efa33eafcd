from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", include("storefront.urls")),
    path("api/", include("error_logging.urls")),
    # A real shop has a web server for these.
    path("static/<path:path>", serve, {"insecure": True}),
]
