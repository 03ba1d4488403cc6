"""Images larger than a network's window: where the windows lie, how their maps are joined, who owns a nucleus."""
