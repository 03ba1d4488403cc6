"""The report page of a run, and pages of tiles."""
