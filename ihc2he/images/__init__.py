"""Images and label maps: finding, decoding and writing their files."""
