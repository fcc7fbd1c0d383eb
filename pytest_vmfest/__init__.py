"""Disposable virtual machines for pytest."""
