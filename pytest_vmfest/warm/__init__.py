"""Warm starts: one machine boots, settles and is frozen; others resume from it in a fraction of the time."""
