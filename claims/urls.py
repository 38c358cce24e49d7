"""Addresses of the claims' REST API."""

from django.urls import path

from claims import api, metrics

urlpatterns = [
    path("metrics", metrics.MetricsView.as_view()),
    path("_electric/runners/<str:runner_id>/claim", api.ClaimView.as_view()),
    path("_electric/wake-callbacks/<str:consumer_id>", api.CallbackView.as_view()),
]
