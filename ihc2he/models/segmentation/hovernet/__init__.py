"""HoVer-Net (Graham et al., Medical Image Analysis 2019)."""
