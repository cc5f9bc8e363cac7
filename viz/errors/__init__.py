"""Figures of split and merge errors."""
