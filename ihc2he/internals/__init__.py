"""Every use of a private part of another library: one file a library, and a test for each assumption."""
