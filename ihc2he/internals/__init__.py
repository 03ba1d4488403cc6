"""Every use of a private part of another library: one file for each library, and a test for each assumption."""
