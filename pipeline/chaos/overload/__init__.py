"""Limits and overload: what the flow does when it is given too much, or stands still."""
