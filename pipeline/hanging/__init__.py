"""Transactions that a broker has forgotten without ending them: found, judged, ended as decided."""
