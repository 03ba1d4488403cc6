"""Models that translate between stains, and how they are judged."""
