"""Warm starts: a machine is booted once, settled and frozen; others resume from it in a fraction of a second."""
