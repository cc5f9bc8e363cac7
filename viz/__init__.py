"""Figures, report and viewer."""
