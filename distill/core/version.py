"""Version of the package, recorded in stores, weights and run records."""

VERSION = "0.1.0"
