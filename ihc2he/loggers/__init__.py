"""Where scalars and pictures of a run go, and the dashboard made of them."""
