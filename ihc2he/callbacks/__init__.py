"""Lightning callbacks and loggers: what a run leaves behind."""
