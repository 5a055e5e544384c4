"""Merchant webhooks: what becomes of payments, told to merchants' endpoints over HTTP.

Outbound only; what gateways tell us is heard by ``producers/webhook_endpoint.py``. A *callback* is
the message about one event to one endpoint, a *delivery* is one POST of it. See
docs/notifications.md.
"""
