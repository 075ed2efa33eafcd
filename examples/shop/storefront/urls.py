from django.urls import path

from storefront import sabotage, views

urlpatterns = [
    path("", views.front, name="front"),
    path("healthz", views.healthz, name="healthz"),
    path("catalogue/<slug:category>/", views.catalogue, name="catalogue"),
    path("orders/stock/", views.stock, name="stock"),
    path("orders/recent/", views.recent_orders, name="recent-orders"),
    path("reports/sales/", views.sales_report, name="sales-report"),
    path("shipping/quote/", views.shipping_quote, name="shipping-quote"),
    path("basket/total/", views.basket_total, name="basket-total"),
    path("api/bad-endpoint/", views.bad_endpoint, name="bad-endpoint"),
    path("sabotage/cache/<slug:category>/", sabotage.corrupt_cache, name="sabotage-cache"),
    path("sabotage/crowd/", sabotage.send_crowd, name="sabotage-crowd"),
    path("sabotage/upstream/", sabotage.arm_upstream, name="sabotage-upstream"),
]
