"""The version, which stores, weights and records hold."""

VERSION = "0.1.0"
