"""lrbench."""
