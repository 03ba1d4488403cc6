"""What a sweep leaves: its tables and pictures."""
