"""Lightning callbacks: what a run writes."""
