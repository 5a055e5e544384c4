"""Reading the settlement reports of gateways: a file in, clearings out; one contract each."""

from __future__ import annotations

from pipeline.gateways.reports.base import ReportFile, read_report

__all__ = ["ReportFile", "read_report"]
