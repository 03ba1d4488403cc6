"""Models that find nuclei, and how they are judged."""
