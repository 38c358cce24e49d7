"""Addresses of the runners' REST API."""

from django.urls import path

from runners import api

urlpatterns = [
    path("_electric/runners", api.RunnersView.as_view()),
    path("_electric/runners/<str:runner_id>", api.RunnerView.as_view()),
    path("_electric/runners/<str:runner_id>/heartbeat", api.HeartbeatView.as_view()),
    path("_electric/runners/<str:runner_id>/enable", api.EnableView.as_view()),
    path("_electric/runners/<str:runner_id>/disable", api.DisableView.as_view()),
    path("_electric/runners/<str:runner_id>/health", api.HealthView.as_view()),
]
