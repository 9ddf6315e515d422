"""What the gateway counts, in the process's Prometheus registry."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("agnt5_http_requests_total", "HTTP requests answered.", ["method", "route", "status"])
SECONDS = Histogram(
    "agnt5_http_request_seconds",
    "Time from a request's head to the start of its answer.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
STREAMS = Gauge("agnt5_http_streams", "Event streams open now.")
FORWARDED = Counter("agnt5_http_forwarded_total", "Requests passed on to the owner of their partition.", ["outcome"])
WEBHOOKS = Counter("agnt5_webhooks_total", "Webhooks received.", ["source", "outcome"])
